"""Recognises ONNX by its protobuf fields: a ModelProto has no magic number.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.artifacts.failures import InspectionError
from server.protobuf import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    TruncatedError,
    WireError,
    fields_of,
    varint,
)

if TYPE_CHECKING:
    from mmap import mmap

_LARGEST_IR_VERSION = 64
_LARGEST_OPSET = 200
_LARGEST_DATA_TYPE = 63
_EXTERNAL = 1
_EXTERNAL_DATA = 13
_LONGEST_ENTRY = 1024
_OPERATOR = re.compile(rb"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


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

# Where tensors stand: field number -> the message that may hold one, for each kind of message.
_Holder = dict[int, Any]
_IN_TENSOR: _Holder = {}
_IN_SPARSE: _Holder = {1: _IN_TENSOR, 2: _IN_TENSOR}
_IN_ATTRIBUTE: _Holder = {5: _IN_TENSOR, 10: _IN_TENSOR, 22: _IN_SPARSE, 23: _IN_SPARSE}
_IN_NODE: _Holder = {5: _IN_ATTRIBUTE}
_IN_GRAPH: _Holder = {1: _IN_NODE, 5: _IN_TENSOR, 15: _IN_SPARSE}
_IN_ATTRIBUTE |= {6: _IN_GRAPH, 11: _IN_GRAPH}
_IN_FUNCTION: _Holder = {7: _IN_NODE, 11: _IN_ATTRIBUTE}
_IN_MODEL: _Holder = {7: _IN_GRAPH, 20: {1: _IN_GRAPH, 2: _IN_GRAPH}, 25: _IN_FUNCTION}
_GRAPH_FIELD = 7
_IR_FIELD, _OPSET_FIELD = 1, 8
_OPSETS = {"": "onnx-opset", "ai.onnx": "onnx-opset", "ai.onnx.ml": "onnx-ml-opset"}
_MOST_NESTED = 96

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
    except TruncatedError:
        return scan.is_onnx
    except WireError:
        return False
    return scan.is_onnx


@dataclass(frozen=True, slots=True)
class External:
    """A tensor whose bytes lie in another file, and the last of them that it names there."""

    tensor: str
    location: str
    end: int


def check_wire(data: mmap | bytes) -> list[External]:
    """Walk all of a model's outer fields, and everything that may hold a tensor.

    Returns the tensors, wherever they stand, that lie in other files.

    Raises:
        InspectionError: ``onnx_damaged`` if it is cut off or holds no graph.
    """
    found: list[External] = []
    try:
        numbers = [number for number, *_ in fields_of(data, 0, len(data))]
        if _GRAPH_FIELD not in numbers:
            raise InspectionError("onnx_damaged", evidence="no graph")
        # Without this key no reader finds the other file; most models need no closer look.
        if data.find(b"location") >= 0:
            _find_external(data, (0, len(data)), _IN_MODEL, 0, found)
    except WireError as error:
        raise InspectionError("onnx_damaged", evidence=str(error)) from None
    return found


def versions_of(data: mmap | bytes) -> dict[str, str]:
    """Return the versions that a model is written in: of the file, and of its operators.

    The keys are ``onnx-ir``, ``onnx-opset`` and ``onnx-ml-opset``. As for every reader, the last
    of several values counts.

    Raises:
        WireError: this is no protobuf message.
    """
    found: dict[str, str] = {}
    for number, wire, first, last in fields_of(data, 0, len(data)):
        if number == _IR_FIELD and wire == VARINT:
            found["onnx-ir"] = str(varint(data, first, last)[0])
        elif number == _OPSET_FIELD and wire == LENGTH:
            domain, version = "", 0
            for inner, inner_wire, start, end in fields_of(data, first, last):
                if inner == 1 and inner_wire == LENGTH:
                    domain = bytes(data[start : min(end, start + 80)]).decode(errors="replace")
                elif inner == 2 and inner_wire == VARINT:
                    version = varint(data, start, end)[0]
            if domain in _OPSETS:
                found[_OPSETS[domain]] = str(version)
    return found


def _find_external(
    data: mmap | bytes,
    part: tuple[int, int],
    inside: _Holder,
    depth: int,
    found: list[External],
) -> None:
    if depth > _MOST_NESTED:
        raise WireError("nested too deeply")
    for number, wire, first, last in fields_of(data, *part):
        holder = inside.get(number) if wire == LENGTH else None
        if holder is _IN_TENSOR:
            found += _external_tensor(data, first, last)
        elif holder is not None:
            _find_external(data, (first, last), holder, depth + 1, found)


def _external_tensor(data: mmap | bytes, start: int, end: int) -> list[External]:
    name = ""
    where: dict[str, str] = {}
    is_external = False
    for number, wire, first, last in fields_of(data, start, end):
        if number == 8 and wire == LENGTH:
            name = bytes(data[first : min(last, first + 80)]).decode(errors="replace")
        if number == 14 and wire == VARINT:
            # Protobuf cuts a number of more than 32 bits to its lower half.
            is_external |= varint(data, first, last)[0] & 0xFFFFFFFF == _EXTERNAL
        if number == _EXTERNAL_DATA and wire == LENGTH:
            where.update(_entry(data, first, last))
    if not is_external:
        return []
    numbers = [where.get(key, "") or "0" for key in ("offset", "length")]
    if not all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers):
        raise WireError("a place in a file that is no number")
    return [External(name or "?", where.get("location", ""), sum(map(int, numbers)))]


def _entry(data: mmap | bytes, start: int, end: int) -> dict[str, str]:
    texts = {
        number: bytes(data[first : min(last, first + _LONGEST_ENTRY)]).decode(errors="replace")
        for number, wire, first, last in fields_of(data, start, end)
        if wire == LENGTH
    }
    return {texts.get(1, ""): texts.get(2, "")}


class _Scan:
    """One strict pass over the first bytes of a file."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.is_onnx = False

    def message(self, start: int, end: int, schema: _Message) -> None:
        position = start
        while position < end:
            tag, position = varint(self._head, position, end)
            position = self._field(tag, position, end, schema)

    def _field(self, tag: int, position: int, end: int, schema: _Message) -> int:
        number, wire = tag >> 3, tag & 7
        kind = schema.fields.get(number)
        if kind is None:
            raise WireError(f"field {number} is unknown")
        if wire == VARINT:
            value, position = varint(self._head, position, end)
            self._number(kind, value)
            return position
        if wire in {FIXED32, FIXED64}:
            if kind != "any":
                raise WireError(f"field {number} is a {kind}")
            return self._within(position + (4 if wire == FIXED32 else 8), end)
        if wire != LENGTH:
            raise WireError(f"wire type {wire}")
        length, position = varint(self._head, position, end)
        self._bytes(kind, position, position + length, schema.nested.get(number))
        return self._within(position + length, end)

    def _within(self, position: int, end: int) -> int:
        if position <= end:
            return position
        if end == len(self._head):
            raise TruncatedError
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
