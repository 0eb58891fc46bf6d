"""Between numpy's types and the protocol's names for them."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Dict, Iterable, Optional, Tuple

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
}
"""Open Inference Protocol name by numpy name; text is BYTES."""

NUMPY_NAMES: Dict[str, str] = {protocol: name for name, protocol in DATATYPES.items()}


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


def package_versions(names: Iterable[str]) -> Dict[str, str]:
    """Installed versions of those distributions that are there."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
