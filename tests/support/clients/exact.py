"""Arrays as JSON, exact to the bit. Runs in the environments of the clients and in the tests'."""

from __future__ import annotations

from typing import Any

import numpy as np


def pack(array: Any) -> dict[str, Any]:
    """Write an array; ``None`` and other values that are no arrays are shown as they are."""
    if not isinstance(array, np.ndarray):
        return {"no array": repr(array)}
    if array.dtype.kind in "OSU":
        items = array.ravel().tolist()
        data = [(item if isinstance(item, bytes) else item.encode()).hex() for item in items]
        return {"dtype": "text", "shape": list(array.shape), "data": data}
    raw = array.tobytes().hex()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": raw}


def unpack(packed: dict[str, Any]) -> Any:
    """Read an array that was written; of BF16 only where ``ml_dtypes`` is installed."""
    if packed["dtype"] == "text":
        array: Any = np.empty(len(packed["data"]), dtype=object)
        array[:] = [bytes.fromhex(item) for item in packed["data"]]
        return array.reshape(packed["shape"])
    dtype: Any = packed["dtype"]
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16 as dtype
    raw = bytes.fromhex(packed["data"])
    return np.frombuffer(raw, dtype).reshape(packed["shape"])
