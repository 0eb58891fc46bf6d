"""Tensors of the binary extension: little-endian bytes to numpy arrays and back."""

from __future__ import annotations

import math
import sys
from struct import Struct
from typing import Any, Dict, List, Tuple

import numpy as np

from server.model_server import tensors
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes.arrays import (
    NUMPY_NAMES,
    bfloat16,
    datatype_of,
    is_bfloat16,
    numpy_dtype,
)
from server.model_server.runtimes.base import TensorSpec

_IS_LITTLE = sys.byteorder == "little"
_LENGTH = Struct("<I")
_COPIED_BYTES = 64 * 1024
"""An answer up to this size is copied out of its array; a larger one is sent from there."""

_LITTLE: Dict[str, Any] = {
    # The foreign type is not swapped, and is read as the whole number of its bits instead.
    datatype: np.dtype("<u2" if datatype == "BF16" else name).newbyteorder("<")
    for datatype, name in NUMPY_NAMES.items()
}


def decode(data: memoryview, spec: TensorSpec, datatype: str, shape: Tuple[int, ...]) -> Any:
    """Turn the bytes of one input into an array; of numbers it is a view of them if it can be.

    Raises:
        BadInputError: ``binary_size_differs``, ``binary_text_broken``, ``tensor_value``,
            ``tensor_shape`` or ``tensor_datatype_not_json``.
    """
    name = spec.name
    if datatype == "BYTES":
        return tensors.reshaped(_text(data, name, shape), spec, shape)
    dtype = _LITTLE.get(datatype)
    if dtype is None:
        raise BadInputError("tensor_datatype_not_json", tensor=name, datatype=datatype)
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise BadInputError(
            "binary_size_differs",
            tensor=name,
            datatype=datatype,
            shape=tensors.shape_text(shape),
            expected=expected,
            found=len(data),
        )
    array = np.frombuffer(data, dtype=dtype)
    if not array.flags.aligned:
        array = array.copy()
    if datatype == "BOOL":
        _check_booleans(array, name)
    elif datatype == "BF16":
        array = array.astype(np.uint16, copy=False).view(bfloat16())
    elif not dtype.isnative:
        array = array.astype(numpy_dtype(datatype))
    return tensors.reshaped(array, spec, shape)


def encode(name: str, value: Any) -> Tuple[Dict[str, Any], Any]:
    """Turn one output into its entry in the JSON and the bytes that follow it.

    Raises:
        ModelFailure: ``output_datatype_unsupported``.
    """
    array = np.asarray(value)
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    datatype = datatype_of(array)
    if datatype is None:
        raise ModelFailure("output_datatype_unsupported", tensor=name, found=str(array.dtype))
    data = _packed_text(array, name) if datatype == "BYTES" else packed(array)
    entry = {
        "name": name,
        "datatype": datatype,
        "shape": list(array.shape),
        "parameters": {"binary_data_size": len(data)},
    }
    return entry, data


def packed(array: Any) -> Any:
    """Return the bytes of an array of numbers, little-endian and in row order."""
    if is_bfloat16(array.dtype):
        array = array.view(np.uint16)
    if _IS_LITTLE and array.nbytes <= _COPIED_BYTES and array.dtype.isnative:
        return array.tobytes()
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return memoryview(array.reshape(-1)).cast("B") if array.size else b""


def _check_booleans(array: Any, name: str) -> None:
    if array.size and array.view(np.uint8).max() > 1:
        raise BadInputError(
            "tensor_value", tensor=name, datatype="BOOL", expected="0, 1", found="number"
        )


def _text(data: memoryview, name: str, shape: Tuple[int, ...]) -> Any:
    """Read elements, each of them its length and then its bytes."""
    count = math.prod(shape)
    # Each element has a length at least, so this bounds what is made for them.
    if count * _LENGTH.size > len(data):
        raise _text_error(name, shape)
    raw = bytes(data)
    found: List[bytes] = []
    start = 0
    size = len(raw)
    for _ in range(count):
        begin = start + _LENGTH.size
        if begin > size:
            raise _text_error(name, shape)
        start = begin + int.from_bytes(raw[start:begin], "little")
        if start > size:
            raise _text_error(name, shape)
        found.append(raw[begin:start])
    if start != size:
        raise _text_error(name, shape)
    array: Any = np.empty(count, dtype=object)
    array[:] = found
    return array


def _text_error(name: str, shape: Tuple[int, ...]) -> BadInputError:
    return BadInputError("binary_text_broken", tensor=name, shape=tensors.shape_text(shape))


def _packed_text(array: Any, name: str) -> bytes:
    parts: List[bytes] = []
    for item in array.ravel().tolist():
        raw = tensors.as_bytes(item, name)
        parts.append(_LENGTH.pack(len(raw)))
        parts.append(raw)
    return b"".join(parts)
