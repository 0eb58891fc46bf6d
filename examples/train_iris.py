"""Trains the example model: a classifier of iris flowers, exported to ONNX.

Run it in an environment of its own: ``pip install scikit-learn==1.9.1 skl2onnx==1.20.0``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).resolve().parent
INPUT = "measurements"


def main() -> None:
    data = load_iris()
    species = data.target_names[data.target].astype(str)
    seen, unseen, answers, expected = train_test_split(
        data.data.astype(np.float32), species, test_size=50, stratify=species, random_state=0
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(seen, answers)
    print(f"accuracy on {len(unseen)} flowers not trained on: {model.score(unseen, expected):.3f}")

    exported = to_onnx(
        model,
        name="iris",
        initial_types=[(INPUT, FloatTensorType([None, seen.shape[1]]))],
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    (HERE / "iris.onnx").write_bytes(exported.SerializeToString())

    requests = [
        {"expected": str(name), "request": request([[round(float(x), 1) for x in row]])}
        for row, name in zip(unseen[:12], expected[:12], strict=True)
    ]
    text = "[\n" + ",\n".join(json.dumps(item) for item in requests) + "\n]\n"
    (HERE / "iris_requests.json").write_text(text, encoding="utf-8")


def request(rows: list[list[float]]) -> dict[str, object]:
    """Return the body of an inference request for some flowers."""
    shape = [len(rows), len(rows[0])]
    tensor = {"name": INPUT, "shape": shape, "datatype": "FP32", "data": rows}
    return {"inputs": [tensor]}


if __name__ == "__main__":
    main()
