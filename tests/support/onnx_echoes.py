"""ONNX models that answer what they were given, in every datatype that the format has."""

from __future__ import annotations

from tests.support.onnx_files import model, node, tensor_type, value

ELEMENTS = {
    "FP32": 1,
    "UINT8": 2,
    "INT8": 3,
    "UINT16": 4,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    "BYTES": 8,
    "BOOL": 9,
    "FP16": 10,
    "FP64": 11,
    "UINT32": 12,
    "UINT64": 13,
    "BF16": 16,
}
"""The format's numbers of the protocol's datatypes."""


def echo(*datatypes: str) -> bytes:
    """Model with a table and a scalar of each datatype: ``int8``, ``int8_one``; ``int8_out``, ..."""
    shapes: dict[str, list[int | str]] = {"": ["rows", "columns"], "_one": []}
    tensors = [
        (f"{datatype.lower()}{suffix}", tensor_type(ELEMENTS[datatype], shape))
        for datatype in datatypes
        for suffix, shape in shapes.items()
    ]
    return model(
        [node("Identity", [name], [f"{name}_out"]) for name, _ in tensors],
        [value(name, kind) for name, kind in tensors],
        [value(f"{name}_out", kind) for name, kind in tensors],
    )
