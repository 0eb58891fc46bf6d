"""Tensors of the Open Inference Protocol: JSON values to numpy arrays and back."""

from __future__ import annotations

import base64
import binascii
import math
from itertools import chain
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes.arrays import (
    DATATYPES,
    FLOATS,
    INTEGERS,
    are_finite,
    largest,
    numpy_dtype,
)
from server.model_server.runtimes.base import TensorSpec

BASE64 = "base64"
"""``content_type`` of a BYTES tensor whose elements are base64, since they are no UTF-8."""

_MAX_RANK = 32
_MAX_DIMENSION = 2**31 - 1

_JSON_NAMES = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
}


def json_name(value: Any) -> str:
    """Name what JSON calls the type of a value."""
    return _JSON_NAMES.get(type(value), type(value).__name__)


def malformed(
    holder: Mapping[str, Any], field: str, expected: str, place: str = ""
) -> BadInputError:
    """Say that a field is not what was expected, or that it is not there; ``place`` is where."""
    if field not in holder:
        return BadInputError("field_missing", field=place + field, expected=expected)
    return BadInputError(
        "field_malformed", field=place + field, expected=expected, found=json_name(holder[field])
    )


def shape_text(shape: Optional[Sequence[int]]) -> str:
    """Write a shape as the metadata does, ``[-1, 4]``; an unknown rank is ``[...]``."""
    return "[...]" if shape is None else str(list(shape))


def is_numeric(datatype: str) -> bool:
    """Whether the elements of a datatype are numbers."""
    return datatype in FLOATS or datatype in INTEGERS


def decode(
    tensor: Dict[str, Any], spec: TensorSpec, *, also: Sequence[str] = (), content_type: str = ""
) -> Any:
    """Turn one input of a request into an array that fits what the model declares.

    ``also`` names datatypes that are taken beside the declared one. ``content_type`` is
    :data:`BASE64` if the elements of a BYTES tensor are base64.

    Raises:
        BadInputError: names the tensor, what was expected and what came.
    """
    datatype, shape = declared(tensor, spec, also=also)
    flat = _flat(tensor, spec.name, shape)
    if datatype == "BOOL":
        _check_types(flat, {bool}, "true or false", spec.name, datatype)
        array = np.array(flat, dtype=bool)
    elif datatype in FLOATS:
        array = _floats(flat, spec.name, datatype)
    elif datatype in INTEGERS:
        array = _integers(flat, spec.name, datatype)
    elif datatype == "BYTES":
        array = _bytes(flat, spec.name, content_type)
    else:
        raise BadInputError("tensor_datatype_not_json", tensor=spec.name, datatype=datatype)
    return reshaped(array, spec, shape)


def reshaped(array: Any, spec: TensorSpec, shape: Tuple[int, ...]) -> Any:
    """Give a flat array its shape.

    Raises:
        BadInputError: ``tensor_shape`` for one of no elements that numpy cannot have.
    """
    try:
        return array.reshape(shape)
    except ValueError:
        raise _shape_error(spec, shape) from None


def declared(
    tensor: Dict[str, Any], spec: TensorSpec, *, also: Sequence[str] = ()
) -> Tuple[str, Tuple[int, ...]]:
    """Return the datatype and the shape of an input of a request, if they fit the model.

    Raises:
        BadInputError: ``field_malformed``, ``tensor_datatype`` or ``tensor_shape``.
    """
    return _checked_datatype(tensor, spec, also), _checked_shape(tensor, spec)


def _checked_datatype(tensor: Dict[str, Any], spec: TensorSpec, also: Sequence[str]) -> str:
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str):
        raise malformed(tensor, "datatype", spec.datatype, f"inputs[{spec.name}].")
    if datatype != spec.datatype and datatype not in also:
        raise BadInputError(
            "tensor_datatype", tensor=spec.name, expected=spec.datatype, found=datatype
        )
    return datatype


def _shape_error(spec: TensorSpec, shape: Sequence[Any]) -> BadInputError:
    # A shape is shown as it came, except for what a caller may have nested in it.
    shown = [str(size) if type(size) is int else json_name(size) for size in shape[:_MAX_RANK]]
    return BadInputError(
        "tensor_shape",
        tensor=spec.name,
        expected=shape_text(spec.shape),
        found="[" + ", ".join(shown) + "]",
    )


def _checked_shape(tensor: Dict[str, Any], spec: TensorSpec) -> Tuple[int, ...]:
    shape = tensor.get("shape")
    if not isinstance(shape, list):
        raise malformed(tensor, "shape", shape_text(spec.shape), f"inputs[{spec.name}].")
    sizes = spec.shape
    if sizes is None:
        sizes = (-1,) * min(len(shape), _MAX_RANK)
    if len(shape) != len(sizes):
        raise _shape_error(spec, shape)
    for wanted, size in zip(sizes, shape):
        if type(size) is not int or wanted not in (size, -1) or not 0 <= size <= _MAX_DIMENSION:
            raise _shape_error(spec, shape)
    return tuple(shape)


def _flat(tensor: Dict[str, Any], name: str, shape: Tuple[int, ...]) -> List[Any]:
    data = tensor.get("data")
    if not isinstance(data, list):
        # Only a scalar may come without a list around it.
        if shape or "data" not in tensor or isinstance(data, (dict, type(None))):
            raise malformed(tensor, "data", "array", f"inputs[{name}].")
        data = [data]
    if data and isinstance(data[0], list):
        data = _unnested(data, name, shape)
    elements = math.prod(shape)
    if len(data) != elements:
        raise BadInputError(
            "tensor_elements",
            tensor=name,
            shape=shape_text(shape),
            expected=elements,
            found=len(data),
        )
    return data


def _unnested(data: List[Any], name: str, shape: Tuple[int, ...]) -> List[Any]:
    sizes = [len(data)]
    while data and isinstance(data[0], list):
        same_type = set(map(type, data)) == {list}
        if not same_type or len(set(map(len, data))) != 1 or len(sizes) >= len(shape):
            raise BadInputError(
                "tensor_nesting",
                tensor=name,
                expected=shape_text(shape),
                found=shape_text(sizes)[:-1] + ", ...]",
            )
        sizes.append(len(data[0]))
        data = list(chain.from_iterable(data))
    if tuple(sizes) != shape[: len(sizes)] or (data and len(sizes) != len(shape)):
        raise BadInputError(
            "tensor_nesting", tensor=name, expected=shape_text(shape), found=shape_text(sizes)
        )
    return data


def _check_types(flat: List[Any], allowed: Any, expected: str, name: str, datatype: str) -> None:
    if set(map(type, flat)) <= allowed:
        return
    wrong = next(value for value in flat if type(value) not in allowed)
    raise BadInputError(
        "tensor_value", tensor=name, datatype=datatype, expected=expected, found=_shown(wrong)
    )


def _shown(value: Any) -> str:
    return str(value) if type(value) in (int, float) else json_name(value)


def _range_error(name: str, datatype: str, found: Any) -> BadInputError:
    low: Any
    high: Any
    if datatype in FLOATS:
        limit = largest(datatype)
        low, high = f"{-limit:.6g}", f"{limit:.6g}"
    else:
        whole = np.iinfo(numpy_dtype(datatype))
        low, high = whole.min, whole.max
    return BadInputError(
        "tensor_range", tensor=name, datatype=datatype, low=low, high=high, found=found
    )


def _floats(flat: List[Any], name: str, datatype: str) -> Any:
    _check_types(flat, {int, float}, "numbers", name, datatype)
    wide = np.array(flat, dtype=np.float64)
    if datatype == "FP64":
        return wide
    with np.errstate(over="ignore", under="ignore"):
        array = wide.astype(numpy_dtype(datatype))
    finite = are_finite(array)
    if not finite.all():
        raise _range_error(name, datatype, flat[int(np.argmin(finite))])
    return array


def _integers(flat: List[Any], name: str, datatype: str) -> Any:
    if float in set(map(type, flat)):
        # A number beyond 64 bits leaves the JSON parser as a float.
        huge = [value for value in flat if type(value) is float and abs(value) >= 2.0**63]
        if huge:
            raise _range_error(name, datatype, huge[0])
    _check_types(flat, {int}, "whole numbers", name, datatype)
    limits = np.iinfo(numpy_dtype(datatype))
    if flat:
        for extreme in (min(flat), max(flat)):
            if not limits.min <= extreme <= limits.max:
                raise _range_error(name, datatype, extreme)
    return np.array(flat, dtype=numpy_dtype(datatype))


def _bytes(flat: List[Any], name: str, content_type: str) -> Any:
    _check_types(flat, {str}, "strings", name, "BYTES")
    array: Any = np.empty(len(flat), dtype=object)
    if content_type == BASE64:
        try:
            array[:] = [base64.b64decode(text, validate=True) for text in flat]
        except (binascii.Error, ValueError):
            raise BadInputError(
                "tensor_value",
                tensor=name,
                datatype="BYTES",
                expected="strings of base64",
                found="string",
            ) from None
    else:
        array[:] = [text.encode() for text in flat]
    return array


def encode(name: str, value: Any) -> Dict[str, Any]:
    """Turn one output into a tensor that orjson writes, numpy arrays included.

    Raises:
        ModelFailure: ``output_not_finite`` or ``output_datatype_unsupported``.
    """
    array = np.asarray(value)
    shape = list(array.shape)
    if array.dtype.kind in "OSU":
        return _encode_text(name, array.ravel(), shape)
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    datatype = DATATYPES.get(array.dtype.name)
    if datatype is None:
        raise ModelFailure("output_datatype_unsupported", tensor=name, found=str(array.dtype))
    if datatype in FLOATS and not are_finite(array).all():
        raise ModelFailure("output_not_finite", tensor=name)
    # A half has no writer of its own, and every half is a float exactly.
    is_half = datatype in {"FP16", "BF16"}
    wanted = np.dtype("float32") if is_half else array.dtype.newbyteorder("=")
    flat = np.ascontiguousarray(array.ravel().astype(wanted, copy=False))
    return {"name": name, "datatype": datatype, "shape": shape, "data": flat}


def _encode_text(name: str, flat: Any, shape: List[int]) -> Dict[str, Any]:
    tensor: Dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": shape}
    raw = [as_bytes(item, name) for item in flat.tolist()]
    try:
        tensor["data"] = [item.decode() for item in raw]
    except UnicodeDecodeError:
        tensor["parameters"] = {"content_type": BASE64}
        tensor["data"] = [base64.b64encode(item).decode("ascii") for item in raw]
    return tensor


def as_bytes(item: Any, name: str) -> bytes:
    """Return an element of a text output as bytes.

    Raises:
        ModelFailure: ``output_datatype_unsupported``.
    """
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode("utf-8", "surrogatepass")
    raise ModelFailure("output_datatype_unsupported", tensor=name, found=type(item).__name__)
