"""Fits every estimator of scikit-learn, XGBoost and LightGBM, and serves each from its file.

Started with a model environment's Python: ``make FOLDER`` fits, dumps by pickle and by joblib, and
notes what the fitted object itself answers; needs nothing of the product. ``serve FOLDER`` loads
each file through the product's loader, asks it the same, and prints one JSON object: name -> "same",
or the code of the failure.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np

ROWS = 60
SOME = 7
METHODS = ("predict", "predict_proba", "transform")
TEXTS = ["good fine nice", "bad awful poor", "nice good day", "poor bad day"] * 15
COMPRESSIONS = ["zlib", "gzip", "bz2", "xz", "lzma", "lz4"]

NUMBERS = np.random.default_rng(0)
X = np.abs(NUMBERS.normal(size=(ROWS, 4))) + 0.1
CLASSES = np.repeat([0, 1, 2], ROWS // 3)
X[CLASSES == 1, 0] += 2
X[CLASSES == 2, 1] += 3
TARGET = X[:, 0] + 2 * X[:, 1] + 0.5
SEVERAL = np.stack([CLASSES, CLASSES % 2], axis=1)


def arguments(name: str) -> dict[str, Any]:
    """What an estimator cannot be made without, or what makes it small."""
    from sklearn.linear_model import LogisticRegression, Ridge

    voters: list[Any] = [("a", LogisticRegression()), ("b", LogisticRegression(C=0.1))]
    regressors = [("a", Ridge()), ("b", Ridge(2.0))]
    given: dict[str, dict[str, Any]] = {
        "ClassifierChain": {"estimator": LogisticRegression()},
        "ColumnTransformer": {"transformers": [("a", Ridge_scaler(), [0, 1])]},
        "FeatureUnion": {"transformer_list": [("a", Ridge_scaler())]},
        "FixedThresholdClassifier": {"estimator": LogisticRegression()},
        "FrozenEstimator": {"estimator": LogisticRegression().fit(X, CLASSES)},
        "GridSearchCV": {"estimator": Ridge(), "param_grid": {"alpha": [1.0, 2.0]}, "cv": 3},
        "HalvingGridSearchCV": {"estimator": Ridge(), "param_grid": {"alpha": [1.0, 2.0]}},
        "HalvingRandomSearchCV": {"estimator": Ridge(), "param_distributions": {"alpha": [1, 2]}},
        "MultiOutputClassifier": {"estimator": LogisticRegression()},
        "MultiOutputRegressor": {"estimator": Ridge()},
        "OneVsOneClassifier": {"estimator": LogisticRegression()},
        "OneVsRestClassifier": {"estimator": LogisticRegression()},
        "OutputCodeClassifier": {"estimator": LogisticRegression(), "random_state": 0},
        "Pipeline": {"steps": [("a", Ridge_scaler()), ("b", LogisticRegression())]},
        "RFE": {"estimator": LogisticRegression()},
        "RFECV": {"estimator": LogisticRegression()},
        "RandomizedSearchCV": {
            "estimator": Ridge(),
            "param_distributions": {"alpha": [1.0, 2.0]},
            "n_iter": 2,
        },
        "RegressorChain": {"estimator": Ridge()},
        "SelectFromModel": {"estimator": LogisticRegression()},
        "SelfTrainingClassifier": {"estimator": LogisticRegression()},
        "SequentialFeatureSelector": {"estimator": LogisticRegression()},
        "SparseCoder": {"dictionary": np.eye(4)},
        "StackingClassifier": {"estimators": voters},
        "StackingRegressor": {"estimators": regressors},
        "TunedThresholdClassifierCV": {"estimator": LogisticRegression()},
        "VotingClassifier": {"estimators": voters, "voting": "soft"},
        "VotingRegressor": {"estimators": regressors},
        "SelectKBest": {"k": 2},
        "GaussianRandomProjection": {"n_components": 2},
        "SparseRandomProjection": {"n_components": 2},
        "OrthogonalMatchingPursuitCV": {"cv": 3},
        "SpectralBiclustering": {"n_clusters": (2, 2)},
        "NMF": {"n_components": 2},
        "MiniBatchNMF": {"n_components": 2},
    }
    return given.get(name, {})


def Ridge_scaler() -> Any:  # noqa: N802 - a short word for the smallest transformer
    from sklearn.preprocessing import StandardScaler

    return StandardScaler()


def special_inputs() -> dict[str, tuple[Any, Any]]:
    """Rows and targets of estimators that want others than most do."""
    dictionaries = [{"a": float(number)} for number in range(ROWS)]
    two_classes = np.stack([CLASSES > 0, CLASSES > 1], axis=1).astype(int)
    two_numbers = np.stack([TARGET, X[:, 2]], axis=1)
    named: dict[str, tuple[Any, Any]] = {
        "DictVectorizer": (dictionaries, None),
        "FeatureHasher": (dictionaries, None),
        "IsotonicRegression": (X[:, 0], TARGET),
        "KernelCenterer": (X @ X.T, None),
        "LabelBinarizer": (CLASSES, None),
        "LabelEncoder": (CLASSES, None),
        "MultiLabelBinarizer": ([{1, 2}, {3}] * 30, None),
        "PatchExtractor": (NUMBERS.normal(size=(4, 8, 8)), None),
        "TfidfTransformer": (np.ceil(X), None),
    }
    named |= dict.fromkeys(
        ("CountVectorizer", "HashingVectorizer", "TfidfVectorizer"), (TEXTS, None)
    )
    named |= dict.fromkeys(("ClassifierChain", "MultiOutputClassifier"), (X, two_classes))
    named |= dict.fromkeys(BINARY, (X, CLASSES > 0))
    named |= dict.fromkeys(OF_TWO_NUMBERS, (X, two_numbers))
    named |= dict.fromkeys(OF_CLASSES, (X, CLASSES))
    return named


BINARY = ("FixedThresholdClassifier", "TunedThresholdClassifierCV")
OF_TWO_NUMBERS = (
    *("MultiOutputRegressor", "RegressorChain", "CCA", "PLSCanonical", "PLSSVD"),
    *("MultiTaskElasticNet", "MultiTaskElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV"),
)
OF_CLASSES = (
    *("RFE", "RFECV", "SelectFromModel", "SequentialFeatureSelector", "FrozenEstimator"),
    *("GenericUnivariateSelect", "SelectFdr", "SelectFpr", "SelectFwe", "SelectKBest"),
    *("SelectPercentile", "Pipeline", "TargetEncoder", "NeighborhoodComponentsAnalysis"),
    *("AdditiveChi2Sampler", "SkewedChi2Sampler", "ComplementNB"),
)


def inputs_of(name: str, model: Any) -> tuple[Any, Any]:
    """Rows and targets that an estimator can be fitted on."""
    from sklearn.base import is_classifier

    usual = (X, CLASSES if is_classifier(model) else TARGET)
    return special_inputs().get(name, usual)


def estimators() -> dict[str, Any]:
    """Every estimator that can be made, by name."""
    with contextlib.suppress(ImportError):
        from sklearn.experimental import enable_halving_search_cv, enable_iterative_imputer  # noqa: F401
    import lightgbm
    import xgboost
    from sklearn.utils import all_estimators

    made = {}
    for name, kind in all_estimators():
        given = arguments(name)
        accepted = inspect.signature(kind.__init__).parameters
        quick = {"random_state": 0, "n_estimators": 5, "max_iter": 300}
        if name == "OrthogonalMatchingPursuitCV":
            del quick["max_iter"]
        given |= {key: value for key, value in quick.items() if key in accepted}
        made[name] = kind(**given)
    for name in ("XGBClassifier", "XGBRegressor", "XGBRFClassifier", "XGBRFRegressor", "XGBRanker"):
        made[name] = getattr(xgboost, name)(n_estimators=5)
    for name in ("LGBMClassifier", "LGBMRegressor", "LGBMRanker"):
        made[name] = getattr(lightgbm, name)(n_estimators=5, verbose=-1)
    return made


def fitted(name: str, model: Any) -> Any:
    rows, target = inputs_of(name, model)
    if name.endswith("Ranker"):
        if name.startswith("XGB"):
            return model.fit(rows, CLASSES, qid=np.repeat([0, 1, 2], ROWS // 3))
        return model.fit(rows, CLASSES, group=[ROWS // 3] * 3)
    if target is None:
        return model.fit(rows)
    return model.fit(rows, target)


def answers(model: Any, rows: Any) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for method in METHODS:
        if callable(getattr(model, method, None)):
            with contextlib.suppress(Exception):
                given[method] = getattr(model, method)(rows)
    return given


def make(folder: Path) -> None:
    compressions = iter(COMPRESSIONS * 100)
    notes: dict[str, Any] = {}
    for name, model in estimators().items():
        try:
            fitted(name, model)
        except Exception as error:  # noqa: BLE001 - the report says which, and why
            notes[name] = {"not fitted": f"{type(error).__name__}: {error}"[:300]}
            continue
        rows = inputs_of(name, model)[0][:SOME]
        with (folder / f"{name}.expected").open("wb") as file:
            pickle.dump((rows, answers(model, rows)), file)
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(model))
        joblib.dump(model, folder / f"{name}.joblib")
        joblib.dump(model, folder / f"{name}.packed", compress=(next(compressions), 3))
        notes[name] = {"fitted": type(model).__module__}
    (folder / "notes.json").write_text(json.dumps(notes), encoding="utf-8")


def served(path: Path, rows: Any, expected: dict[str, Any]) -> str:
    from server.model_server.failures import ModelFailure
    from server.model_server.loading import load_model
    from server.model_server.runtimes.arrays import encode_text
    from server.model_server.spec import ModelSpec

    spec = ModelSpec(run_id="r", names=("r",), kind="sklearn", path=str(path), digest="0" * 64)
    try:
        runtime, loaded = load_model(spec)
    except ModelFailure as failure:
        return f"{failure.code} {failure.params.get('name', '')}".strip()
    given = np.asarray(rows)
    if loaded.signature.inputs[0].datatype == "BYTES":
        given = encode_text(np.array(rows, dtype=object))
    elif given.dtype != np.float64:
        given = given.astype(np.float64)
    try:
        answered = runtime.predict({"input": given})
    except Exception as error:  # noqa: BLE001 - the report says which, and why
        return f"{type(error).__name__}: {error}"[:300]
    return compared(answered, expected)


def compared(answered: dict[str, Any], expected: dict[str, Any]) -> str:
    for name, array in answered.items():
        method = name.rstrip("0123456789").rstrip("_")
        wanted = expected[method]
        if name != method:
            wanted = wanted[int(name.rpartition("_")[2])]
        wanted = wanted.toarray() if hasattr(wanted, "toarray") else np.asarray(wanted)
        if array.shape != wanted.shape:
            return f"{name} has shape {array.shape}, not {wanted.shape}"
        if not same(array, wanted):
            return f"{name} differs"
    return "same" if answered else "no answer"


def same(array: Any, wanted: Any) -> bool:
    if array.dtype != object:
        return bool(np.allclose(array, wanted, equal_nan=True))
    return [item.decode() for item in array.ravel()] == wanted.astype(str).ravel().tolist()


def serve(folder: Path) -> dict[str, dict[str, str]]:
    results: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*.expected")):
        rows, expected = pickle.loads(path.read_bytes())
        files = [path.with_suffix(f".{form}") for form in ("pickle", "joblib", "packed")]
        results[path.stem] = {file.suffix[1:]: served(file, rows, expected) for file in files}
    return results


def main() -> None:
    warnings.simplefilter("ignore")
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        make(folder)
    else:
        sys.stdout.write(json.dumps(serve(folder)) + "\n")


if __name__ == "__main__":
    main()
