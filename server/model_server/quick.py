"""The short way from JSON to arrays for requests of numbers that are right; all else goes the long way.

What this reader takes, the careful one would take with the same result. Whatever it is not
sure of it leaves alone, and the careful one finds out what is wrong with it, if anything.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from server.model_server.runtimes.arrays import FLOATS, largest, numpy_dtype
from server.model_server.runtimes.base import Signature, TensorSpec
from server.model_server.tensors import is_numeric

simdjson: Any
try:
    import simdjson
except ImportError:
    # There is no build of it for every interpreter.
    simdjson = None

_KEPT_BYTES = 1 << 20
"""The parser's memory grows with the largest body; beyond this one is made for the request."""
_MAX_RANK = 32
_MAX_DIMENSION = 2**31 - 1
_BOM = 0xEF
"""How a mark begins that this parser skips, and that is no JSON."""
_FIELDS = 4
_HEEDED = frozenset(("binary_data_size", "shared_memory_region"))
_WIDE = {"d": np.float64, "i": np.int64, "u": np.uint64}

_Shape = Tuple[int, ...]


class _UnsureError(Exception):
    """The request needs more care."""


_FAILURES = (
    *(_UnsureError, KeyError, TypeError, ValueError, IndexError, AttributeError),
    *(RuntimeError, OverflowError, MemoryError),
)
"""What the parser and numpy raise at what is not as it should be."""


class _Reading(NamedTuple):
    """How an input of one datatype is read."""

    shape: Optional[_Shape]
    """What the model declares."""
    kind: str
    """The parser's name for the type that numbers are read as."""
    wide: Any
    """numpy's type for that."""
    dtype: Any
    """The type that the model wants."""
    limit: float
    """The largest number that it can be."""


class QuickReader:
    """Reads requests for one model whose inputs are all numbers."""

    def __init__(self, signature: Signature, *, takes_fp64: bool) -> None:
        self._inputs = {spec.name: _readings(spec, takes_fp64) for spec in signature.inputs}
        self._count = len(self._inputs)
        numeric = all(is_numeric(spec.datatype) for spec in signature.inputs)
        self._parser = simdjson.Parser() if simdjson and numeric else None

    def read(self, body: bytes) -> Optional[Tuple[Dict[str, Any], Dict[str, Any]]]:
        """Return the arrays by name, in the model's order, and the request's other fields.

        None if this is not the way to read the request.
        """
        parser = self._parser
        if parser is None:
            return None
        try:
            if body[0] == _BOM:
                return None
            if len(body) > _KEPT_BYTES:
                parser = simdjson.Parser()
            return self._read(parser.parse(body), body.count(b"["))
        except _FAILURES:
            return None

    def _read(self, request: Any, arrays: int) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        """Read a request that has so many opening brackets, those in its strings included.

        An array that is neither a shape, nor a tensor, nor a row of one is found by counting.
        """
        others: Dict[str, Any] = {}
        tensors = request["inputs"]
        if len(request) != 1:
            names = set(request)
            # Which of two of one name counts is not this parser's to say.
            if len(names) != len(request):
                raise _UnsureError
            names.discard("inputs")
            others = {name: _plain(request[name]) for name in names}
            arrays -= isinstance(others.get("outputs"), list)
        count = self._count
        if len(tensors) != count:
            raise _UnsureError
        spare = arrays - 1 - 2 * count
        found: Dict[str, Any] = {}
        for tensor in tensors:
            name = tensor["name"]
            data, shape, found[name] = _array(tensor, self._inputs[name])
            if spare:
                spare -= _rows(data, shape)
        if spare or len(found) != count:
            raise _UnsureError
        if count > 1:
            found = {name: found[name] for name in self._inputs}
        return found, others


def _readings(spec: TensorSpec, takes_fp64: bool) -> Dict[str, _Reading]:
    """Tell by datatype how an input is read."""
    names = {spec.datatype, "FP64"} if takes_fp64 else {spec.datatype}
    return {name: _reading(name, spec.shape) for name in names if is_numeric(name)}


def _reading(datatype: str, shape: Optional[_Shape]) -> _Reading:
    dtype = numpy_dtype(datatype)
    limit = math.inf
    if datatype in FLOATS:
        kind = "d"
        if datatype != "FP64":
            limit = largest(datatype)
    else:
        kind = "u" if datatype == "UINT64" else "i"
    wide = np.dtype(_WIDE[kind])
    return _Reading(shape, kind, wide, dtype, limit)


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _array(tensor: Any, readings: Mapping[str, _Reading]) -> Tuple[Any, List[int], Any]:
    """Return a tensor's data, its shape, and its array if its data is a flat list."""
    if len(tensor) != _FIELDS:
        # With one more there may be parameters, of which some are heeded only with care.
        parameters = tensor["parameters"]
        heeded = None if parameters is None else _HEEDED.intersection(parameters.as_dict())
        if len(tensor) != _FIELDS + 1 or heeded:
            raise _UnsureError
    declared, kind, wide, dtype, limit = readings[tensor["datatype"]]
    shape = tensor["shape"].as_list()
    elements = _count(shape, declared)
    data = tensor["data"]
    flat = np.frombuffer(data.as_buffer(of_type=kind), wide)
    if len(flat) != elements:
        raise _UnsureError
    if dtype is wide:
        return data, shape, flat.reshape(shape)
    if kind == "d":
        # Where the extremes are is found sooner than what they are.
        if elements and not -limit <= flat.item(flat.argmin()) <= flat.item(flat.argmax()) <= limit:
            raise _UnsureError
        return data, shape, flat.astype(dtype).reshape(shape)
    array = flat.astype(dtype)
    if not (array == flat).all():
        raise _UnsureError
    return data, shape, array.reshape(shape)


def _count(shape: List[Any], declared: Optional[_Shape]) -> int:
    """Count the elements of a shape, if it is one that the model takes."""
    if declared is None:
        declared = (-1,) * min(len(shape), _MAX_RANK)
    if len(shape) != len(declared):
        raise _UnsureError
    elements = 1
    for wanted, size in zip(declared, shape):
        if type(size) is not int or wanted not in (size, -1) or not 0 <= size <= _MAX_DIMENSION:
            raise _UnsureError
        elements *= size
    return elements


def _rows(data: Any, shape: Sequence[int]) -> int:
    """Count the arrays inside of a nested tensor, whose sizes have to be those of its shape."""
    if not isinstance(data[0], simdjson.Array):
        return 0
    level = [data]
    count = 0
    for depth, size in enumerate(shape):
        if depth:
            level = [row for rows in level for row in rows]
            count += len(level)
        for row in level:
            if len(row) != size:
                raise _UnsureError
    return count
