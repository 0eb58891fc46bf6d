"""Reads pickles without running them: which globals they name, what they would build.

A small machine follows the opcodes with stand-ins for every object; nothing is imported, nothing
is called. It knows joblib's arrays, whose bytes lie between the opcodes. Runs in the inspecting
child too: standard library only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from server.artifacts.failures import InspectionError

if TYPE_CHECKING:
    from collections.abc import Callable

_KEPT_CHARS = 512
_CHUNK_BYTES = 256 * 1024
_LINE_BYTES = 1024 * 1024
_MOST_GLOBALS = 2000
_MOST_NESTED = 64
_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
_DTYPE = re.compile(r"[<>=|]?([?biufcmMOSUVaB])(\d*)")
_HAS_OBJECTS = 1


class _Opaque:
    """Any value that does not matter."""

    def __repr__(self) -> str:
        return "..."


_OPAQUE = _Opaque()
_MARK = object()


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle would import."""

    name: str


@dataclass(slots=True, eq=False)
class Built:
    """An object that the pickle would make by calling something."""

    maker: Any
    args: Any
    state: Any = None

    @property
    def name(self) -> str:
        """The class or function that makes it, as far as that is known."""
        maker = self.maker
        if isinstance(maker, Global) and maker.name.endswith("copyreg._reconstructor"):
            maker = self.args[0] if isinstance(self.args, tuple) and self.args else maker
        return maker.name if isinstance(maker, Global) else "?"


@dataclass(slots=True, eq=False)
class Mapping:
    """A dictionary of which only text keys are kept."""

    items: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PickleReport:
    """What one pickle names. ``top`` is the class of its outermost object, or a word for it.

    ``value`` is its stand-in, ``has_joblib_arrays`` tells whether only joblib can load it, and
    ``sklearn_version`` which scikit-learn wrote it.
    """

    globals: tuple[str, ...]
    top: str
    value: Any
    has_joblib_arrays: bool
    sklearn_version: str | None


def read_pickle(stream: IO[bytes]) -> PickleReport:
    """Follow one pickle from ``stream`` to its STOP; what comes behind stays unread.

    Raises:
        InspectionError: ``pickle_damaged``.
    """
    machine = _Machine(stream)
    try:
        value = machine.run()
    except (IndexError, KeyError, ValueError, TypeError, OverflowError, EOFError) as error:
        evidence = f"byte {machine.position}: {type(error).__name__}"
        raise InspectionError("pickle_damaged", evidence=evidence) from None
    return PickleReport(
        globals=tuple(machine.globals),
        top=_word(value),
        value=value,
        has_joblib_arrays=machine.has_joblib_arrays,
        sklearn_version=machine.sklearn_version,
    )


def _word(value: Any) -> str:
    if isinstance(value, Built):
        return value.name
    if isinstance(value, Global):
        return value.name
    return "dict" if isinstance(value, Mapping) else type(value).__name__.strip("_").lower()


class _Machine:
    """The stack, the marks and the memo of one pickle (and of those nested in it)."""

    def __init__(self, stream: IO[bytes], outer: _Machine | None = None) -> None:
        self._stream = stream
        self._depth = 0 if outer is None else outer._depth + 1
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.globals: dict[str, None] = {} if outer is None else outer.globals
        self.position = 0 if outer is None else outer.position
        self.has_joblib_arrays = False
        self.sklearn_version: str | None = None

    def run(self) -> Any:
        """Return the stand-in of the outermost object."""
        while (opcode := self.read(1)) != b".":
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise ValueError(f"opcode {opcode!r}")
            handler(self)
        return self.pop()

    # Bytes

    def read(self, count: int) -> bytes:
        """Read exactly ``count`` bytes (few: large ones are skipped instead)."""
        data = self._stream.read(count)
        if len(data) != count:
            raise EOFError
        self.position += count
        return data

    def skip(self, count: int) -> None:
        """Read past ``count`` bytes."""
        while count:
            count -= len(self.read(min(count, _CHUNK_BYTES)))

    def number(self, count: int, *, signed: bool = False) -> int:
        """Read a little-endian number."""
        return int.from_bytes(self.read(count), "little", signed=signed)

    def line(self) -> str:
        """Read up to a line feed, as the text opcodes want it."""
        data = self._stream.readline(_LINE_BYTES)
        if not data.endswith(b"\n"):
            raise EOFError
        self.position += len(data)
        return data[:-1].decode("utf-8", "replace")

    # Stack

    def push(self, value: Any) -> None:
        """Push a value."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Take the top value, which may not be a mark."""
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark instead of a value")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the topmost mark, and the mark."""
        taken = []
        while (value := self._stack.pop()) is not _MARK:
            taken.append(value)
        taken.reverse()
        return taken

    def top(self) -> Any:
        """Look at the top value."""
        return self._stack[-1]

    def drop(self) -> None:
        """Take the top value, be it a mark."""
        self._stack.pop()

    def remember(self, index: int) -> None:
        """Put the top value into the memo."""
        self._memo[index] = self.top()

    def memoize(self) -> None:
        """Put the top value into the memo under the next number."""
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        """Push a value of the memo."""
        self.push(self._memo[index])

    # What the opcodes build

    def text(self, count: int) -> None:
        """Push a text; a long one is skipped, it can be no name."""
        if count > _KEPT_CHARS:
            self.skip(count)
            self.push(_OPAQUE)
        else:
            self.push(self.read(count).decode("utf-8", "replace"))

    def blob(self, count: int) -> None:
        """Push bytes that nobody looks at."""
        self.skip(count)
        self.push(_OPAQUE)

    def name_global(self, module: Any, name: Any) -> None:
        """Push a global and note its name."""
        if not isinstance(module, str) or not isinstance(name, str):
            # Computed names are legal opcodes; no pickler writes them.
            module, name = "?", "?"
        full = f"{module}.{name}"[:_KEPT_CHARS]
        if len(self.globals) < _MOST_GLOBALS:
            self.globals.setdefault(full)
        self.push(Global(full))

    def call(self, args: Any) -> None:
        """Replace a callable by what it would return."""
        self.push(Built(self.pop(), args))

    def put_items(self, pairs: list[Any]) -> None:
        """Store pairs into the mapping (or object) on top."""
        target = self.top()
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if key == "_sklearn_version" and isinstance(value, str):
                self.sklearn_version = value
            if isinstance(target, Mapping) and isinstance(key, str):
                target.items[key] = value

    def build(self) -> None:
        """Give an object its state; joblib's arrays are followed by their bytes."""
        state = self.pop()
        target = self.top()
        if isinstance(target, Built):
            target.state = state
            if target.name == _WRAPPER:
                self._skip_array(target)

    def _skip_array(self, wrapper: Built) -> None:
        self.has_joblib_arrays = True
        state = wrapper.state.items if isinstance(wrapper.state, Mapping) else {}
        size, has_objects = _item_size(state.get("dtype"))
        if has_objects:
            # An array of objects is a pickle of its own.
            if self._depth >= _MOST_NESTED:
                raise ValueError("nested too deeply")
            inner = _Machine(self._stream, self)
            inner.run()
            self.position = inner.position
            return
        shape = state.get("shape")
        if not isinstance(shape, tuple) or not all(type(axis) is int for axis in shape):
            raise ValueError("an array without a shape")
        if min(shape, default=0) < 0:
            raise ValueError("a negative shape")
        if state.get("numpy_array_alignment_bytes") is not None:
            self.skip(self.number(1))
        self.skip(math.prod(shape) * size)


def _item_size(dtype: Any) -> tuple[int, bool]:
    """Return the bytes of one element, and whether elements are objects."""
    if isinstance(dtype, Global):
        dtype = Built(Global("numpy.dtype"), (dtype.name.rpartition(".")[2],))
    if not isinstance(dtype, Built) or not isinstance(dtype.args, tuple) or not dtype.args:
        raise ValueError("an array without a type")
    match = _DTYPE.fullmatch(dtype.args[0]) if isinstance(dtype.args[0], str) else None
    if match is None:
        raise ValueError("an unknown type")
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    flags = state[7] if len(state) > 7 and type(state[7]) is int else 0
    count = int(match[2][:9] or "1")
    size = count * 4 if match[1] == "U" else count
    return size, match[1] == "O" or bool(flags & _HAS_OBJECTS)


def _integer(text: str) -> Any:
    if text in {"00", "01"}:
        return text == "01"
    return int(text.removesuffix("L")) if len(text) < 100 else _OPAQUE


def _long(machine: _Machine, size: int) -> None:
    if size > 64:
        machine.blob(size)
    else:
        machine.push(machine.number(size, signed=True))


def _pair_of_lines(machine: _Machine) -> None:
    module = machine.line()
    machine.name_global(module, machine.line())


def _instance(machine: _Machine) -> None:
    args = tuple(machine.pop_to_mark())
    _pair_of_lines(machine)
    machine.call(args)


def _object(machine: _Machine) -> None:
    maker, *args = machine.pop_to_mark()
    machine.push(Built(maker, tuple(args)))


def _stack_global(machine: _Machine) -> None:
    name = machine.pop()
    machine.name_global(machine.pop(), name)


def _new_object_with_names(machine: _Machine) -> None:
    machine.pop()
    machine.call(machine.pop())


def _set_item(machine: _Machine) -> None:
    value = machine.pop()
    machine.put_items([machine.pop(), value])


def _mapping(machine: _Machine) -> None:
    pairs = machine.pop_to_mark()
    machine.push(Mapping())
    machine.put_items(pairs)


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def handler(machine: _Machine) -> None:
        taken = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(taken)))

    return handler


def _pushing(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


def _extension(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.name_global("copyreg", f"extension_{machine.number(size)}")


_HANDLERS: dict[bytes, Callable[[_Machine], Any]] = {
    # Framing: what a frame holds is read like the rest.
    b"\x80": lambda m: m.skip(1),
    b"\x95": lambda m: m.skip(8),
    # Values
    b"N": _pushing(None),
    b"\x88": _pushing(True),
    b"\x89": _pushing(False),
    b"I": lambda m: m.push(_integer(m.line())),
    b"L": lambda m: m.push(_integer(m.line())),
    b"J": lambda m: m.push(m.number(4, signed=True)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": lambda m: _long(m, m.number(1)),
    b"\x8b": lambda m: _long(m, m.number(4)),
    b"F": lambda m: (m.line(), m.push(_OPAQUE)),
    b"G": lambda m: m.blob(8),
    b"S": lambda m: m.push(m.line().strip("'\"")[:_KEPT_CHARS]),
    b"V": lambda m: m.push(m.line()[:_KEPT_CHARS]),
    b"T": lambda m: m.text(m.number(4)),
    b"U": lambda m: m.text(m.number(1)),
    b"X": lambda m: m.text(m.number(4)),
    b"\x8c": lambda m: m.text(m.number(1)),
    b"\x8d": lambda m: m.text(m.number(8)),
    b"B": lambda m: m.blob(m.number(4)),
    b"C": lambda m: m.blob(m.number(1)),
    b"\x8e": lambda m: m.blob(m.number(8)),
    b"\x96": lambda m: m.blob(m.number(8)),
    # Containers
    b"(": _pushing(_MARK),
    b")": _pushing(()),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"]": _pushing(_OPAQUE),
    b"l": lambda m: (m.pop_to_mark(), m.push(_OPAQUE)),
    b"a": lambda m: m.pop(),
    b"e": lambda m: m.pop_to_mark(),
    b"}": lambda m: m.push(Mapping()),
    b"d": _mapping,
    b"s": _set_item,
    b"u": lambda m: m.put_items(m.pop_to_mark()),
    b"\x8f": _pushing(_OPAQUE),
    b"\x90": lambda m: m.pop_to_mark(),
    b"\x91": lambda m: (m.pop_to_mark(), m.push(_OPAQUE)),
    # Stack and memo
    b"0": lambda m: m.drop(),
    b"1": lambda m: m.pop_to_mark(),
    b"2": lambda m: m.push(m.top()),
    b"g": lambda m: m.recall(int(m.line()[:20])),
    b"h": lambda m: m.recall(m.number(1)),
    b"j": lambda m: m.recall(m.number(4)),
    b"p": lambda m: m.remember(int(m.line()[:20])),
    b"q": lambda m: m.remember(m.number(1)),
    b"r": lambda m: m.remember(m.number(4)),
    b"\x94": lambda m: m.memoize(),
    # Globals and objects
    b"c": _pair_of_lines,
    b"\x93": _stack_global,
    b"i": _instance,
    b"o": _object,
    b"R": lambda m: m.call(m.pop()),
    b"\x81": lambda m: m.call(m.pop()),
    b"\x92": _new_object_with_names,
    b"b": lambda m: m.build(),
    b"P": lambda m: (m.line(), m.push(_OPAQUE)),
    b"Q": lambda m: (m.pop(), m.push(_OPAQUE)),
    b"\x82": _extension(1),
    b"\x83": _extension(2),
    b"\x84": _extension(4),
}
