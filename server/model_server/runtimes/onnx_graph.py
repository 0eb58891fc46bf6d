"""What an ONNX graph tells by its operators, read from the file without running anything.

Field numbers are those of ``onnx.proto``, meanings those of the operators' specification.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from server.protobuf import LENGTH, VARINT, WireError, fields_of, varint

_INT64 = 7
_MOST_VALUES = 64
"""A tensor with more values is no list of axes or sizes."""

_REDUCTIONS = frozenset(
    f"Reduce{name}"
    for name in (
        "L1",
        "L2",
        "LogSum",
        "LogSumExp",
        "Max",
        "Mean",
        "Min",
        "Prod",
        "Sum",
        "SumSquare",
    )
)
_AXIS = {
    "ArgMax": 0,
    "ArgMin": 0,
    "Hardmax": -1,
    "LogSoftmax": -1,
    "LpNormalization": -1,
    "Softmax": -1,
    "TopK": -1,
}
"""Operators that compare along one axis, and which one if nothing is said."""
_MIXERS = frozenset(
    {
        *("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "Unique"),
        *("Loop", "Scan", "If", "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)
"""Operators for which all rows are one, or that answer the same twice differently."""

_SIZING = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Resize": (2, 3),
    "Tile": (1,),
    "Upsample": (1,),
}
"""Operators, and which of their inputs say by their values how much there is to do."""
_ENDLESS = frozenset({"Loop", "BeamSearch", "GreedySearch", "Sampling"})


class Facts(NamedTuple):
    """What follows from the operators of a graph."""

    may_mix_rows: bool
    """Whether a row's answer may depend on the other rows of the same call."""
    is_bounded: bool
    """Whether the work follows from the sizes of the inputs, and not from their values."""


class _Node(NamedTuple):
    op: str
    inputs: List[str]
    outputs: List[str]
    ints: Dict[str, Tuple[int, ...]]


def read_facts(path: str) -> Facts:
    """Read a model's file; what cannot be read promises nothing."""
    try:
        graph = _Graph()
        file = Path(path).open("rb")  # noqa: SIM115 - closed below
        with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graph.read_model(data)
    except (WireError, TypeError, ValueError, OSError, RecursionError, struct.error):
        return Facts(may_mix_rows=True, is_bounded=False)
    return Facts(graph.may_mix_rows, not graph.may_be_endless)


class _Graph:
    """Goes through the nodes in their order, which is one in which they can be run."""

    def __init__(self) -> None:
        self.may_mix_rows = False
        self.may_be_endless = False
        # Names whose values follow from the file and the sizes of the inputs; some values.
        self._known: Set[str] = {""}
        self._values: Dict[str, Tuple[int, ...]] = {}

    def read_model(self, data: Any) -> None:
        for number, value in _fields(data, 0, len(data)):
            if number == 7:
                self._read_graph(data, *value)
            elif number == 25:
                # The nodes of a function, which may be called with anything.
                self._read_nodes(data, [one for n, one in _fields(data, *value) if n == 7])

    def _read_graph(self, data: Any, start: int, end: int) -> None:
        nodes: List[Tuple[int, int]] = []
        for number, value in _fields(data, start, end):
            if number == 1:
                nodes.append(value)
            elif number == 5:
                self._keep(*_tensor(data, *value))
        self._read_nodes(data, nodes)

    def _keep(self, name: str, values: Optional[Tuple[int, ...]]) -> None:
        self._known.add(name)
        if values is not None:
            self._values[name] = values

    def _read_nodes(self, data: Any, nodes: List[Tuple[int, int]]) -> None:
        for start, end in nodes:
            node = self._read_node(data, start, end)
            self.may_mix_rows = self.may_mix_rows or self._mixes(node)
            self.may_be_endless = self.may_be_endless or self._is_endless(node)
            if node.op in {"Constant", "Shape", "Size"} or self._known.issuperset(node.inputs):
                self._known.update(node.outputs)

    def _read_node(self, data: Any, start: int, end: int) -> _Node:
        node = _Node("", [], [], {})
        for number, value in _fields(data, start, end):
            if number == 1:
                node.inputs.append(_text(data, value))
            elif number == 2:
                node.outputs.append(_text(data, value))
            elif number == 4:
                node = node._replace(op=_text(data, value))
            elif number == 5:
                self._read_attribute(data, node, *value)
        return node

    def _read_attribute(self, data: Any, node: _Node, start: int, end: int) -> None:
        name, ints = "", []
        for number, value in _fields(data, start, end):
            if number == 1:
                name = _text(data, value)
            elif number == 3:
                ints.append(_signed(value))
            elif number == 8:
                ints.extend(_numbers(data, value))
            elif number == 5:
                _name, values = _tensor(data, *value)
                ints.extend(values or ())
            elif number in {6, 11}:
                self._read_graph(data, *value)
        node.ints[name] = tuple(ints)
        if name in {"value", "value_int", "value_ints"}:
            # Of a Constant; the outputs stand before the attributes in every file.
            self._values.update(dict.fromkeys(node.outputs, tuple(ints)))

    def _mixes(self, node: _Node) -> bool:
        if node.op in _MIXERS:
            return True
        if node.op in _REDUCTIONS:
            axes = self._given(node, "axes")
            return (
                axes is None
                or 0 in axes
                or (not axes and not node.ints.get("noop_with_empty_axes", (0,))[0])
            )
        if node.op in _AXIS:
            return 0 in node.ints.get("axis", (_AXIS[node.op],))
        if node.op == "CumSum":
            axes = self._given(node, "axis")
            return axes is None or 0 in axes
        if node.op == "MeanVarianceNormalization":
            return 0 in node.ints.get("axes", (0,))
        return node.op == "BatchNormalization" and node.ints.get("training_mode", (0,)) == (1,)

    def _given(self, node: _Node, name: str) -> Optional[Tuple[int, ...]]:
        """Return what an attribute, or in newer versions the second input, says; None: unknown."""
        if name in node.ints:
            return node.ints[name]
        if len(node.inputs) > 1 and node.inputs[1]:
            return self._values.get(node.inputs[1])
        return ()

    def _is_endless(self, node: _Node) -> bool:
        places = _SIZING.get(node.op, ())
        return node.op in _ENDLESS or any(
            place < len(node.inputs) and node.inputs[place] not in self._known for place in places
        )


def _tensor(data: Any, start: int, end: int) -> Tuple[str, Optional[Tuple[int, ...]]]:
    """Return a tensor's name, and its values if they are a few whole numbers."""
    name, kind, size = "", 0, 1
    raw: Optional[Tuple[int, int]] = None
    ints: List[int] = []
    for number, value in _fields(data, start, end):
        if number == 1:
            for dim in [value] if isinstance(value, int) else _numbers(data, value):
                size *= dim
        elif number == 2:
            kind = value
        elif number == 7 and size <= _MOST_VALUES:
            ints.extend([_signed(value)] if isinstance(value, int) else _numbers(data, value))
        elif number == 8:
            name = _text(data, value)
        elif number == 9:
            raw = value
    if kind != _INT64 or size > _MOST_VALUES:
        return name, None
    if raw is not None:
        ints = list(struct.unpack(f"<{size}q", data[raw[0] : raw[1]]))
    return name, tuple(ints)


def _fields(data: Any, start: int, end: int) -> Iterator[Tuple[int, Any]]:
    """Yield numbers and values of a message's fields; of bytes where they begin and end."""
    for number, wire, first, last in fields_of(data, start, end):
        if wire == VARINT:
            yield number, varint(data, first, last)[0]
        elif wire == LENGTH:
            yield number, (first, last)


def _numbers(data: Any, value: Any) -> List[int]:
    """Return packed or single whole numbers."""
    if isinstance(value, int):
        return [_signed(value)]
    start, end = value
    found: List[int] = []
    while start < end and len(found) <= _MOST_VALUES:
        number, start = varint(data, start, end)
        found.append(_signed(number))
    return found


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _text(data: Any, value: Tuple[int, int]) -> str:
    return bytes(data[value[0] : value[1]]).decode("utf-8", "replace")
