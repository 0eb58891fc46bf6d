"""Between numpy's types and the protocol's names for them."""

from __future__ import annotations

from functools import cache
from typing import Any, Dict, Optional, Tuple

import numpy as np

DATATYPES: Dict[str, str] = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}
"""Open Inference Protocol name by numpy name; text is BYTES."""

NUMPY_NAMES: Dict[str, str] = {protocol: name for name, protocol in DATATYPES.items()}

_BFLOAT16_EXPONENT = 0x7F80
_BFLOAT16_LARGEST = 0x7F7F

FLOATS = ("FP16", "BF16", "FP32", "FP64")
INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")


@cache
def bfloat16() -> Any:
    """Return the type of BF16, which numpy lacks; few models need its library and its 2.5 MiB."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def is_bfloat16(dtype: Any) -> bool:
    """Whether this is the type of BF16; numpy takes it for one of unknown kind."""
    return bool(dtype.kind == "V" and dtype.name == "bfloat16")


def largest(datatype: str) -> float:
    """Return the largest finite number of a datatype of floats."""
    if datatype != "BF16":
        return float(np.finfo(numpy_dtype(datatype)).max)
    # All ones but for the lowest bit of the exponent.
    return float(np.array(_BFLOAT16_LARGEST, np.uint16).view(bfloat16()))


def numpy_dtype(datatype: str) -> Any:
    """Return the numpy type of a datatype; text and unknown types are objects."""
    return bfloat16() if datatype == "BF16" else np.dtype(NUMPY_NAMES.get(datatype, "object"))


def is_float(dtype: Any) -> bool:
    """Whether elements of a numpy type can be fractions, NaN or infinite."""
    return bool(dtype.kind == "f" or is_bfloat16(dtype))


def are_finite(array: Any) -> Any:
    """Tell which elements of an array of floats are neither NaN nor infinite."""
    if not is_bfloat16(array.dtype):
        return np.isfinite(array)
    # The foreign type's own test warns of NaNs of one kind.
    return array.view(np.uint16) & _BFLOAT16_EXPONENT != _BFLOAT16_EXPONENT


def datatype_of(array: Any) -> Optional[str]:
    """Protocol's name of an array's type, None if it has none."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    return DATATYPES.get(array.dtype.name)


def encode_text(array: Any) -> Any:
    """Make text of any kind an object array of UTF-8 ``bytes``."""
    flat = [
        item if isinstance(item, bytes) else str(item).encode("utf-8") for item in array.ravel()
    ]
    out: Any = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(array.shape)


def decode_text(array: Any) -> Any:
    """Make an object array of ``bytes`` one of ``str``.

    Raises:
        UnicodeDecodeError: an element is not UTF-8.
    """
    flat = [
        item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in array.ravel()
    ]
    out: Any = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(array.shape)


def plain(array: Any) -> Any:
    """Make whatever a model answers a contiguous array of a type that the protocol has.

    Text becomes ``bytes``, a wide float FP64; anything else that has no name is text, too.
    """
    array = np.asarray(array)
    if array.dtype.kind == "O" and array.size and _all_numbers(array):
        array = array.astype(np.float64)
    if array.dtype.kind in "OSU":
        return encode_text(array)
    if array.dtype.kind == "f" and array.dtype.name not in DATATYPES:
        array = array.astype(np.float64)
    if array.dtype.name not in DATATYPES:
        return encode_text(array.astype(str))
    return np.require(array, array.dtype.newbyteorder("="), "C")


def _all_numbers(array: Any) -> bool:
    return all(isinstance(item, (int, float, np.number)) for item in array.ravel())


def batched(shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """Shape with its first dimension left to the request."""
    return (-1, *shape[1:]) if shape else ()
