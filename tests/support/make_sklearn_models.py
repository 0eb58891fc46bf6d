"""Makes the scikit-learn models that the runtime tests load; started with a model environment's Python.

Beside each model stands ``NAME.json``: inputs, and what the framework itself answers to them.
Needs nothing of the product.
"""

from __future__ import annotations

import builtins
import codecs
import importlib
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

ROWS, NUMBERS = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[NUMBERS]
SOME = ROWS[::30]
BOTH = ("predict", "predict_proba")


def note(folder: Path, name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    content = {"inputs": inputs, "outputs": outputs}
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def keep(
    folder: Path, name: str, model: Any, given: Any, *methods: str, joblib_level: int = -1
) -> None:
    path = folder / f"{name}.bin"
    if joblib_level >= 0:
        joblib.dump(model, path, compress=joblib_level)
    else:
        path.write_bytes(pickle.dumps(model))
    answers = {method: np.asarray(getattr(model, method)(given)).tolist() for method in methods}
    note(folder, name, {"input": np.asarray(given).tolist()}, answers)


def make_of_numbers(folder: Path) -> None:
    forest = RandomForestClassifier(8, random_state=0, n_jobs=-1).fit(ROWS, NAMES)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(ROWS, NAMES)
    numbers = LogisticRegression(max_iter=500).fit(ROWS, NUMBERS)
    outliers = IsolationForest(n_estimators=8, random_state=0).fit(ROWS)
    keep(folder, "forest", forest, SOME, *BOTH)
    keep(folder, "forest_joblib", forest, SOME, *BOTH, joblib_level=0)
    keep(folder, "forest_compressed", forest, SOME, *BOTH, joblib_level=3)
    keep(folder, "pipeline", pipeline, SOME, *BOTH)
    keep(folder, "numbers", numbers, SOME, *BOTH)
    keep(folder, "svc", SVC().fit(ROWS, NUMBERS), SOME, "predict")
    keep(folder, "ridge", Ridge().fit(ROWS, ROWS[:, 0] * 2), SOME, "predict")
    keep(folder, "ridge_several", Ridge().fit(ROWS, ROWS[:, :2]), SOME, "predict")
    keep(folder, "kmeans", KMeans(3, n_init=1, random_state=0).fit(ROWS), SOME, "predict")
    keep(folder, "outliers", outliers, SOME, "predict")
    keep(folder, "scaler", StandardScaler().fit(ROWS), SOME, "transform")

    tree = DecisionTreeClassifier(random_state=0).fit(ROWS, np.stack([NUMBERS, NUMBERS % 2], 1))
    (folder / "several.bin").write_bytes(pickle.dumps(tree))
    probabilities = {
        f"predict_proba_{i}": p.tolist() for i, p in enumerate(tree.predict_proba(SOME))
    }
    expected = {"predict": tree.predict(SOME).tolist(), **probabilities}
    note(folder, "several", {"input": SOME.tolist()}, expected)


def make_of_text(folder: Path) -> None:
    texts = ["good fine nice", "bad awful poor", "nice good", "poor bad"]
    words = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, list("+-+-"))
    keep(folder, "words", words, texts, *BOTH, joblib_level=0)
    mixed = np.array([["red", 1.5], ["blue", 2.5], ["red", 3.5]], dtype=object)
    columns = ColumnTransformer([("c", OneHotEncoder(), [0]), ("n", StandardScaler(), [1])])
    keep(
        folder,
        "table",
        make_pipeline(columns, Ridge()).fit(mixed, [1.0, 2.0, 3.0]),
        mixed,
        "predict",
    )


def make_broken(folder: Path) -> None:
    fitted = pickle.dumps(Ridge().fit(ROWS, NUMBERS))
    (folder / "not_fitted.bin").write_bytes(pickle.dumps(Ridge()))
    (folder / "not_an_estimator.bin").write_bytes(pickle.dumps({"weights": ROWS}))
    reader = TfidfVectorizer().fit(["some words"]).set_params(input="filename")
    (folder / "reads_files.bin").write_bytes(pickle.dumps(reader))
    (folder / "trailing.bin").write_bytes(fitted + b"more")
    (folder / "truncated.bin").write_bytes(fitted[:-100])


def make_of_other_times(folder: Path) -> None:
    """Write models as other versions of scikit-learn would, and such as cannot be served."""
    old = Ridge().fit(ROWS, NUMBERS)
    written = pickle.dumps(old)
    own = f"\x8c{chr(len(sklearn.__version__))}{sklearn.__version__}".encode("latin1")
    (folder / "older.bin").write_bytes(written.replace(own, b"\x8c\x050.1.2"))
    lost = pickle.loads(written)
    del lost.coef_
    lost.n_features_in_ = 4
    other = pickle.dumps(lost).replace(own, b"\x8c\x050.1.2")
    (folder / "older_broken.bin").write_bytes(other)
    renamed = written.replace(b"\x8c\x05Ridge", b"\x8c\x05Rigde")
    (folder / "renamed.bin").write_bytes(renamed)
    (folder / "no_predict.bin").write_bytes(pickle.dumps(DBSCAN().fit(ROWS)))
    pairs = DictVectorizer().fit([{"a": 1.0}])
    (folder / "dictionaries.bin").write_bytes(pickle.dumps(pairs))
    columns = ColumnTransformer([("n", StandardScaler(), [0, 1])]).fit(ROWS)
    columns.transformers_ = [(name, step, ["a", "b"]) for name, step, _ in columns.transformers_]
    (folder / "by_name.bin").write_bytes(pickle.dumps(columns))
    framed = make_pipeline(StandardScaler(), Ridge()).fit(ROWS, NUMBERS)
    framed.named_steps["standardscaler"].set_output(transform="pandas")
    (folder / "framed.bin").write_bytes(pickle.dumps(framed))


class Call:
    """Pickles into a call of a named function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def make_malicious(folder: Path) -> None:
    """Write files that leave a marker if anything in them runs."""
    model = Ridge().fit(ROWS, NUMBERS)
    marker = str(folder / "marker")
    write = f"open({marker!r}, 'w').close()"
    calls = {
        "os_system": Call(os.system, f"touch {marker}"),
        "builtins_exec": Call(builtins.exec, write),
        "builtins_eval": Call(builtins.eval, write),
        "builtins_open": Call(builtins.open, marker, "w"),
        "subprocess": Call(subprocess.check_call, ["touch", marker]),
        "importlib": Call(importlib.import_module, "antigravity"),
        "numpy_savetxt": Call(np.savetxt, marker, [1.0]),
        "numpy_load": Call(np.load, marker),
        "numpy_memmap": Call(np.memmap, marker, "uint8", "w+", 0, (4,)),
        "numpy_fromfile": Call(np.fromfile, marker),
        "joblib_load": Call(joblib.load, marker),
        "joblib_dump": Call(joblib.dump, 1, marker),
        "codecs_encode": Call(codecs.encode, "x", "rot13"),
    }
    for name, call in calls.items():
        (folder / f"evil_{name}.bin").write_bytes(pickle.dumps(call))
    system = calls["os_system"]
    (folder / "evil_protocol0.bin").write_bytes(pickle.dumps(system, protocol=0))
    (folder / "evil_inside.bin").write_bytes(pickle.dumps([model, {"deep": system}]))
    attached = pickle.loads(pickle.dumps(model))
    attached.extra = system
    (folder / "evil_attribute.bin").write_bytes(pickle.dumps(attached))
    # A scanner does not know this one: only the unpickler's list stands before it.
    attached.extra = calls["numpy_savetxt"]
    (folder / "evil_quiet.bin").write_bytes(pickle.dumps(attached))
    (folder / "evil_second.bin").write_bytes(pickle.dumps(model) + pickle.dumps(system))
    # Arrays of objects are pickles of their own inside a joblib file.
    joblib.dump(np.array([1, system], dtype=object), folder / "evil_array.bin")
    joblib.dump(np.array([1, system], dtype=object), folder / "evil_array_z.bin", compress=3)
    method = b"cbuiltins\ngetattr\n(cposix\nstat\nX\x04\x00\x00\x00nametR."
    (folder / "evil_getattr.bin").write_bytes(method)
    dotted = b"\x80\x04\x8c\x0fsklearn.tree._tree\x8c\x09os.system\x93."
    (folder / "evil_dotted.bin").write_bytes(dotted.replace(b"\x8c\x0f", b"\x8c\x12"))
    testing = b"csklearn.utils._testing\n_delete_folder\n(X\x01\x00\x00\x00.tR."
    (folder / "evil_testing.bin").write_bytes(testing)


def main() -> None:
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    make_of_numbers(folder)
    make_of_text(folder)
    make_broken(folder)
    make_of_other_times(folder)
    make_malicious(folder)


if __name__ == "__main__":
    main()
