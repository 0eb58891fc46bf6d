"""Recognises ONNX by its protobuf fields: a ModelProto has no magic number.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.artifacts.failures import InspectionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_LARGEST_IR_VERSION = 64
_LARGEST_OPSET = 200
_LARGEST_DATA_TYPE = 63
_EXTERNAL = 1
_OPERATOR = re.compile(rb"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class WireError(Exception):
    """The bytes are no protobuf message."""


class _TruncatedError(WireError):
    """The message goes on behind the last byte that is there."""


@dataclass(frozen=True, slots=True)
class _Message:
    """What may stand in a message: field number -> what its value must look like."""

    fields: dict[int, str]
    nested: dict[int, _Message] = field(default_factory=dict)


_OPSET = _Message({1: "text", 2: "opset"})
_TENSOR = _Message(
    {1: "numbers", 2: "data_type", 3: "any", 4: "any", 5: "any", 6: "any", 7: "any", 8: "text"}
    | {9: "any", 10: "any", 11: "any", 12: "text", 13: "any", 14: "number", 16: "any"}
)
_NODE = _Message(
    {1: "text", 2: "text", 3: "text", 4: "operator", 5: "any", 6: "text", 7: "text", 8: "text"}
    | {9: "any", 10: "any"}
)
_VALUE = _Message({1: "text", 2: "any", 3: "text", 4: "any"})
_GRAPH = _Message(
    {1: "message", 2: "text", 5: "message", 10: "text", 11: "message", 12: "message"}
    | {13: "message", 14: "any", 15: "any", 16: "any"},
    {1: _NODE, 5: _TENSOR, 11: _VALUE, 12: _VALUE, 13: _VALUE},
)
_MODEL = _Message(
    {1: "ir_version", 2: "text", 3: "text", 4: "text", 5: "number", 6: "text", 7: "message"}
    | {8: "message", 14: "any", 20: "any", 25: "any", 26: "any"},
    {7: _GRAPH, 8: _OPSET},
)


def looks_like_onnx(head: bytes) -> bool:
    """Tell whether ``head`` is the beginning (or all) of an ONNX model.

    Fields may come in any order. At least one value that only ONNX has (a version, an operator,
    a tensor's type) must be seen, and nothing that ONNX does not have.
    """
    scan = _Scan(head)
    try:
        scan.message(0, len(head), _MODEL)
    except _TruncatedError:
        return scan.is_onnx
    except WireError:
        return False
    return scan.is_onnx


def check_onnx(data: mmap | bytes) -> None:
    """Walk all of a model's outer fields.

    Raises:
        InspectionError: ``onnx_damaged`` if it is cut off or holds no graph,
            ``onnx_external_data`` if weights lie in other files.
    """
    try:
        graphs = [span for number, _, *span in fields_of(data, 0, len(data)) if number == 7]
        if not graphs:
            raise InspectionError("onnx_damaged", evidence="no graph")
        for start, end in graphs:
            _refuse_external_data(data, start, end)
    except WireError as error:
        raise InspectionError("onnx_damaged", evidence=str(error)) from None


def fields_of(data: mmap | bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, start, end) of each field in ``data[start:end]``.

    Raises:
        WireError: this is no protobuf message, or it is cut off.
    """
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"field number {number} at byte {position}")
        if wire == VARINT:
            _, after = _varint(data, position, end)
        elif wire == FIXED64:
            after = position + 8
        elif wire == FIXED32:
            after = position + 4
        elif wire == LENGTH:
            length, position = _varint(data, position, end)
            after = position + length
        else:
            raise WireError(f"wire type {wire} at byte {position}")
        if after > end:
            raise _TruncatedError(f"{after - end} bytes are missing at the end")
        yield number, wire, position, after
        position = after


def _varint(data: mmap | bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for count in range(10):
        if position + count >= end:
            raise _TruncatedError("the end is missing")
        byte = data[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position + count + 1
    raise WireError(f"a number without an end at byte {position}")


def _refuse_external_data(data: mmap | bytes, start: int, end: int) -> None:
    for number, wire, first, last in fields_of(data, start, end):
        if number != 5 or wire != LENGTH:
            continue
        name = ""
        external = False
        for inner, inner_wire, at, to in fields_of(data, first, last):
            if inner == 8 and inner_wire == LENGTH:
                name = bytes(data[at : min(to, at + 80)]).decode(errors="replace")
            if inner == 14 and inner_wire == VARINT:
                external = _varint(data, at, to)[0] == _EXTERNAL
        if external:
            raise InspectionError("onnx_external_data", tensor=name or "?")


class _Scan:
    """One strict pass over the first bytes of a file."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.is_onnx = False

    def message(self, start: int, end: int, schema: _Message) -> None:
        position = start
        while position < end:
            tag, position = _varint(self._head, position, end)
            position = self._field(tag, position, end, schema)

    def _field(self, tag: int, position: int, end: int, schema: _Message) -> int:
        number, wire = tag >> 3, tag & 7
        kind = schema.fields.get(number)
        if kind is None:
            raise WireError(f"field {number} is unknown")
        if wire == VARINT:
            value, position = _varint(self._head, position, end)
            self._number(kind, value)
            return position
        if wire in {FIXED32, FIXED64}:
            if kind != "any":
                raise WireError(f"field {number} is a {kind}")
            return self._within(position + (4 if wire == FIXED32 else 8), end)
        if wire != LENGTH:
            raise WireError(f"wire type {wire}")
        length, position = _varint(self._head, position, end)
        self._bytes(kind, position, position + length, schema.nested.get(number))
        return self._within(position + length, end)

    def _within(self, position: int, end: int) -> int:
        if position <= end:
            return position
        if end == len(self._head):
            raise _TruncatedError
        raise WireError("a field is longer than its message")

    def _number(self, kind: str, value: int) -> None:
        largest = {
            "ir_version": _LARGEST_IR_VERSION,
            "opset": _LARGEST_OPSET,
            "data_type": _LARGEST_DATA_TYPE,
        }.get(kind)
        if largest is not None:
            if not 0 < value <= largest:
                raise WireError(f"{value} is no {kind}")
            self.is_onnx = True
        elif kind not in {"number", "numbers", "any"}:
            raise WireError(f"a number instead of {kind}")

    def _bytes(self, kind: str, start: int, end: int, nested: _Message | None) -> None:
        present = self._head[start:end]
        if kind == "message" and nested is not None:
            self.message(start, min(end, len(self._head)), nested)
        elif kind == "operator":
            if end <= len(self._head):
                if not _OPERATOR.fullmatch(present):
                    raise WireError("no operator")
                self.is_onnx = True
        elif kind == "text":
            _check_text(present, is_whole=end <= len(self._head))
        elif kind not in {"any", "numbers"}:
            raise WireError(f"bytes instead of a {kind}")


def _check_text(data: bytes, *, is_whole: bool) -> None:
    if _CONTROL.search(data):
        raise WireError("control characters in a text")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if is_whole or error.reason != "unexpected end of data":
            raise WireError("a text that is none") from None
