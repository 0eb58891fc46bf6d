"""The session that every peer has: one thread within a call, as ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32}


def open_session(path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class RowsModel:
    """A model for the peers that have a JSON of their own: rows in, the last output out."""

    def __init__(self, path: str) -> None:
        self._session = open_session(path)
        asked = self._session.get_inputs()[0]
        self._name = asked.name
        self._dtype = DTYPES[asked.type]

    def __call__(self, rows: Any) -> Any:
        return self._session.run(None, {self._name: np.asarray(rows, self._dtype)})[-1]
