"""Trains the example model: which of three vineyards' grapes a wine was made of, as ONNX.

Run it in an environment of its own: ``pip install scikit-learn==1.9.1 skl2onnx==1.20.0``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).resolve().parent
ROWS = 24


def main() -> None:
    data = load_wine()
    seen, unseen, answers, expected = train_test_split(
        data.data.astype(np.float32),
        data.target,
        test_size=60,
        stratify=data.target,
        random_state=0,
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(seen, answers)
    print(f"accuracy on {len(unseen)} wines not trained on: {model.score(unseen, expected):.3f}")

    exported = to_onnx(
        model,
        name="wine",
        initial_types=[("input", FloatTensorType([None, seen.shape[1]]))],
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    (HERE / "wine.onnx").write_bytes(exported.SerializeToString())

    rows = [
        json.dumps({"label": int(label), "values": [round(float(x), 2) for x in row]})
        for row, label in zip(unseen[:ROWS], expected[:ROWS], strict=True)
    ]
    features = json.dumps(list(data.feature_names))
    text = f'{{"features": {features},\n"rows": [\n' + ",\n".join(rows) + "\n]}\n"
    (HERE / "wine_rows.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
