"""Write the two models into a folder; run by an interpreter that has scikit-learn and magika.

Prints as JSON what each is asked, and what onnxruntime answers to that.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def small(path: Path) -> Any:
    """Train a classifier of 30 numbers; return one row for it."""
    data = load_breast_cancer()
    rows = data.data.astype(np.float32)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        rows, data.target
    )
    exported = to_onnx(
        model,
        name="tumour",
        initial_types=[("input", FloatTensorType([None, rows.shape[1]]))],
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    path.write_bytes(exported.SerializeToString())
    return rows[:1]


def larger(path: Path) -> Any:
    """Copy the model that tells files apart; return the bytes of one "file" for it."""
    found = importlib.util.find_spec("magika")
    assert found is not None
    assert found.origin is not None
    shutil.copy(next(Path(found.origin).parent.rglob("*.onnx")), path)
    return np.random.default_rng(0).integers(0, 257, (1, 2048)).astype(np.int32)


def described(path: Path, row: Any) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]
    answers = session.run(outputs, {name: row})
    return {
        "input": name,
        "row": row[0].tolist(),
        "outputs": outputs,
        "datatypes": [str(answer.dtype) for answer in answers],
        "expected": [float(value) for value in answers[-1].ravel()],
    }


def main() -> None:
    folder = Path(sys.argv[1])
    made = {}
    for name, make in (("small", small), ("larger", larger)):
        path = folder / f"{name}.onnx"
        made[name] = described(path, make(path))
    print(json.dumps(made))


if __name__ == "__main__":
    main()
