"""Arrays of every datatype of the protocol, drawn or fixed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
FLOATS = ("FP16", "BF16", "FP32", "FP64")
DATATYPES = ("BOOL", *INTEGERS, *FLOATS, "BYTES")

NUMPY: dict[str, Any] = {
    "BOOL": np.dtype(bool),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
    **{name: np.dtype(name.lower()) for name in INTEGERS},
}

SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn, datatype: str, *, finite: bool = True) -> Any:
    """Draw an array of a datatype: any shape up to four dimensions, any values."""
    shape = draw(SHAPES)
    count = int(np.prod(shape))
    dtype = NUMPY[datatype]
    if datatype == "BYTES":
        text = st.text(max_size=6).map(str.encode) if finite else st.binary(max_size=6)
        array: Any = np.empty(count, dtype=object)
        array[:] = draw(st.lists(text, min_size=count, max_size=count))
        return array.reshape(shape)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if datatype == "BOOL":
        return (np.frombuffer(raw, np.uint8) > 127).reshape(shape)
    array = np.frombuffer(raw, dtype).copy()
    if finite and datatype in FLOATS:
        with np.errstate(invalid="ignore"):
            array[~np.isfinite(array)] = 0
    return array.reshape(shape)


def same(first: Any, second: Any) -> bool:
    """Whether two arrays are alike to the bit."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if first.dtype.kind == "O":
        return bool(first.ravel().tolist() == second.ravel().tolist())
    return bool(first.tobytes() == second.tobytes())
