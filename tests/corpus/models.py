"""Harm in the formats of models themselves: ONNX and what PyTorch writes."""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING

from tests.corpus.opcodes import Raw, call, name, pickle_of, value
from tests.corpus.technique import Technique
from tests.corpus.zip_files import harm
from tests.support.onnx_files import (
    FLOAT,
    bytes_field,
    external_tensor,
    linear,
    model,
    node,
    number_field,
    tensor_type,
    varint,
)
from tests.support.onnx_files import value as onnx_value
from tests.support.pickle_files import zipped

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[[str], bytes]

_X = onnx_value("x", tensor_type(FLOAT, [4]))
_Y = onnx_value("y", tensor_type(FLOAT, [4]))


def _onnx(*nodes: bytes, initializers: list[bytes] | None = None) -> bytes:
    return model(list(nodes) or [node("Relu", ["x"], ["y"])], [_X], [_Y], initializers=initializers)


def _external(location: str) -> Make:
    return lambda _: _onnx(
        node("Add", ["x", "w"], ["y"]), initializers=[external_tensor("w", [4], location)]
    )


def _in_graph(graph_fields: bytes) -> Make:
    return lambda _: _onnx() + bytes_field(7, graph_fields)


_OUTSIDE = external_tensor("w", [4], "../../etc/passwd")
_CONSTANT = (
    bytes_field(2, "c") + bytes_field(4, "Constant") + bytes_field(5, bytes_field(5, _OUTSIDE))
)


def _wide_enum(_: str) -> bytes:
    """The mark of an outside tensor as a number that readers cut to its lower half."""
    return _onnx(initializers=[_OUTSIDE[:-2] + varint(14 << 3) + varint((1 << 32) + 1)])


def _second_mark(_: str) -> bytes:
    """The mark twice: readers believe the last, which takes it back, or the first."""
    return _onnx(initializers=[_OUTSIDE + number_field(14, 0)])


def _deep(_: str) -> bytes:
    graph = bytes_field(5, _OUTSIDE)
    for _number in range(200):
        graph = bytes_field(1, bytes_field(5, bytes_field(6, graph)))
    return _onnx() + bytes_field(7, graph)


def _endless_text(_: str) -> bytes:
    return number_field(1, 8) + varint(2 << 3 | 2) + varint(1 << 40) + b"x" * 100


def _group(_: str) -> bytes:
    """A kind of field that was given up before ONNX began."""
    return linear() + varint(7 << 3 | 3) + varint(7 << 3 | 4)


def _two_producers(_: str) -> bytes:
    return _onnx(node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"]))


def _circle(_: str) -> bytes:
    return _onnx(
        node("Add", ["x", "b"], ["a"]), node("Add", ["x", "a"], ["b"]), node("Relu", ["b"], ["y"])
    )


def _no_values(_: str) -> bytes:
    """A tensor of terabytes with no bytes in it."""
    huge = number_field(1, 1 << 40) + number_field(2, FLOAT) + bytes_field(8, "w")
    return _onnx(node("Add", ["x", "w"], ["y"]), initializers=[huge])


def _own_function(_: str) -> bytes:
    """A function that is made of itself."""
    body = bytes_field(1, "F") + bytes_field(4, "x") + bytes_field(5, "y")
    body += bytes_field(7, node("F", ["x"], ["y"], domain="own")) + bytes_field(10, "own")
    body += bytes_field(9, bytes_field(1, "") + number_field(2, 17))
    opset = bytes_field(8, bytes_field(1, "own") + number_field(2, 1))
    return _onnx(node("F", ["x"], ["y"], domain="own")) + opset + bytes_field(25, body)


def _ort_format(_: str) -> bytes:
    """onnxruntime's own format, which it opens without any check."""
    return struct.pack("<I", 24) + b"ORTM" + bytes(64)


_ONNX: dict[str, tuple[Make, str]] = {
    "weights in a file above": (_external("../../etc/passwd"), "onnx_external_data"),
    "weights in an absolute file": (_external("/etc/passwd"), "onnx_external_data"),
    "weights in a linked file beside": (_external("weights.bin"), "onnx_external_data"),
    "weights at another address": (_external("http://127.0.0.1/w"), "onnx_external_data"),
    "outside weights in a constant": (_in_graph(bytes_field(1, _CONSTANT)), "onnx_external_data"),
    "outside weights in a branch": (
        _in_graph(bytes_field(1, bytes_field(5, bytes_field(6, bytes_field(5, _OUTSIDE))))),
        "onnx_external_data",
    ),
    "outside weights in a sparse tensor": (
        _in_graph(bytes_field(15, bytes_field(1, _OUTSIDE))),
        "onnx_external_data",
    ),
    "outside weights in a function": (
        lambda _: _onnx() + bytes_field(25, bytes_field(7, _CONSTANT)),
        "onnx_external_data",
    ),
    "outside weights for training": (
        lambda _: _onnx() + bytes_field(20, bytes_field(1, bytes_field(5, _OUTSIDE))),
        "onnx_external_data",
    ),
    "outside weights marked by a wide number": (_wide_enum, "onnx_external_data"),
    "outside weights marked twice": (_second_mark, "onnx_external_data"),
    "graphs in graphs without end": (_deep, "onnx_damaged"),
    "a text that is longer than the file": (_endless_text, "onnx_damaged"),
    "a field of a kind long gone": (_group, "artifact_type_unsupported"),
    "a tensor without its terabytes": (_no_values, "onnx_check_failed"),
    "two nodes with one result": (_two_producers, "onnx_check_failed"),
    "nodes in a circle": (_circle, "onnx_check_failed"),
    "a function that calls itself": (_own_function, "onnx_check_failed"),
    "onnxruntime's own unchecked format": (_ort_format, "artifact_type_unsupported"),
}


def _torch(code: str = "", **members: bytes) -> bytes:
    body = code or "  def forward(self, x: Tensor) -> Tensor:\n    return x\n"
    files = {
        "data.pkl": pickle_of(Raw(name("__torch__:M") + b")\x81}b")),
        "code/__torch__.py": f"class M(Module):\n{body}".encode(),
        "constants.pkl": pickle_of(value(())),
        "version": b"3\n",
    }
    return zipped({f"m/{path}": content for path, content in {**files, **members}.items()})


def _code(call_: str) -> Make:
    body = f"  def forward(self, x: Tensor) -> Tensor:\n    y = {call_}\n    return x\n"
    return lambda _: _torch(body)


def _legacy(mark: str) -> bytes:
    facts = pickle.dumps(1001, protocol=2) + pickle.dumps({"little_endian": True}, protocol=2)
    return pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + facts + harm(mark)


def _legacy_magic(mark: str) -> bytes:
    """The number that tells the format is what the harmful call returns."""
    return pickle_of(call("os:mkdir", mark)) + pickle.dumps(1001, protocol=2)


def _checkpoint(mark: str) -> bytes:
    return zipped({"m/data.pkl": harm(mark), "m/version": b"3\n"})


def _exported(mark: str) -> bytes:
    return zipped({"m/archive_format": b"pt2", "m/models/model.json": b"{}", "m/x.pkl": harm(mark)})


_TORCH: dict[str, tuple[Make, str]] = {
    "an operator that reads files": (
        _code('torch.from_file("/etc/passwd", False, 10, dtype=0)'),
        "torchscript_file_operator",
    ),
    "an operator that writes files": (
        _code('torch.save(x, "/tmp/x")'),
        "torchscript_file_operator",
    ),
    "the same operator by its full name": (
        _code('ops.aten.from_file ("/etc/passwd")'),
        "torchscript_file_operator",
    ),
    "a call in the module's pickle": (
        lambda m: _torch(**{"data.pkl": harm(m)}),
        "pickle_dangerous",
    ),
    "a call in the constants": (lambda m: _torch(**{"constants.pkl": harm(m)}), "pickle_dangerous"),
    "a call in the debug tables": (
        lambda m: _torch(**{"code/__torch__.py.debug_pkl": harm(m)}),
        "pickle_dangerous",
    ),
    "a call in an extra file": (lambda m: _torch(**{"extra/notes": harm(m)}), "pickle_dangerous"),
    "a name that climbs up": (lambda m: _torch(**{"../../x": harm(m)}), "archive_name_unsafe"),
    "a call in a checkpoint": (_checkpoint, "pickle_dangerous"),
    "a call in an old checkpoint": (_legacy, "pickle_dangerous"),
    "a call in place of the old format's number": (_legacy_magic, "pickle_dangerous"),
    "a call in an exported program": (_exported, "pickle_dangerous"),
}


def techniques() -> list[Technique]:
    return [
        Technique(group=group, name=title, make=make, code=code)
        for group, listed in (("ONNX", _ONNX), ("PyTorch", _TORCH))
        for title, (make, code) in listed.items()
    ]
