"""A small machine that follows a pickle's opcodes with stand-ins for every object.

Nothing is imported, nothing is called. It knows joblib's arrays, whose bytes lie between the
opcodes. It keeps the opcodes as it goes, without those bytes, for a scanner to read. Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Mapping as Table

KEPT_CHARS = 512
_CHUNK_BYTES = 256 * 1024
_LINE_BYTES = 1024 * 1024
_MOST_GLOBALS = 2000
_MOST_NESTED = 64
_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
_DTYPE = re.compile(r"[<>=|]?([?biufcmMOSUVaB])(\d*)")
_HAS_OBJECTS = 1
# Framing and the protocol's number mean nothing to a scanner, but come between what belongs together.
_FRAMING = (b"\x80", b"\x95")
_LONG = b"C\x00"
# A scanner holds an object per opcode up to the next STOP. After these nothing refers back.
_MAY_STOP_AFTER = (b"u", b"e", b"s", b"b")
_MOST_AT_ONCE = 100_000
# How protocols 0 and 1 make an object of a class; Python 2 had another name for the module.
_RECONSTRUCTORS = {"copyreg._reconstructor", "copy_reg._reconstructor"}


class _Opaque:
    """Any value that does not matter."""

    def __repr__(self) -> str:
        return "..."


OPAQUE = _Opaque()
MARK = object()


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
        if isinstance(maker, Global) and maker.name in _RECONSTRUCTORS:
            maker = self.args[0] if isinstance(self.args, tuple) and self.args else maker
        return maker.name if isinstance(maker, Global) else "?"


@dataclass(slots=True, eq=False)
class Mapping:
    """A dictionary of which only text keys are kept."""

    items: dict[str, Any] = field(default_factory=dict)


class Machine:
    """The stack, the marks and the memo of one pickle (and of those nested in it)."""

    def __init__(
        self,
        stream: IO[bytes],
        handlers: Table[bytes, Callable[[Machine], Any]],
        outer: Machine | None = None,
    ) -> None:
        self._stream = stream
        self._handlers = handlers
        self._depth: int = 0 if outer is None else outer._depth + 1
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.globals: dict[str, None] = {} if outer is None else outer.globals
        self.position: int = 0 if outer is None else outer.position
        self.has_joblib_arrays = False
        self.sklearn_version: str | None = None
        self._opcodes = bytearray()
        self._has_skipped = False
        self._count = 0
        self.nested: list[bytes] = [] if outer is None else outer.nested

    @property
    def opcodes(self) -> bytes:
        """The opcodes that were followed, long values left out; nested pickles stand apart."""
        return bytes(self._opcodes)

    def run(self) -> Any:
        """Return the stand-in of the outermost object."""
        while (opcode := self.read(1)) != b".":
            handler = self._handlers.get(opcode)
            if handler is None:
                raise ValueError(f"opcode {opcode!r}")
            start = len(self._opcodes) - 1
            handler(self)
            if self._has_skipped or opcode in _FRAMING:
                self._opcodes[start:] = b"" if opcode in _FRAMING else _LONG
                self._has_skipped = False
            self._count += 1
            if self._count >= _MOST_AT_ONCE and opcode in _MAY_STOP_AFTER:
                self._opcodes += b"."
                self._count = 0
        return self.pop()

    # Bytes

    def read(self, count: int) -> bytes:
        """Read exactly ``count`` bytes (few: large ones are skipped instead)."""
        data = self._stream.read(count)
        if len(data) != count:
            raise EOFError
        self.position += count
        self._opcodes += data
        return data

    def skip(self, count: int) -> None:
        """Read past ``count`` bytes."""
        self._has_skipped = True
        self._pass(count)

    def _pass(self, count: int) -> None:
        while count:
            data = self._stream.read(min(count, _CHUNK_BYTES))
            if not data:
                raise EOFError
            self.position += len(data)
            count -= len(data)

    def number(self, count: int, *, signed: bool = False) -> int:
        """Read a little-endian number."""
        return int.from_bytes(self.read(count), "little", signed=signed)

    def line(self) -> str:
        """Read up to a line feed, as the text opcodes want it."""
        data = self._stream.readline(_LINE_BYTES)
        if not data.endswith(b"\n"):
            raise EOFError
        self.position += len(data)
        self._opcodes += data
        return data[:-1].decode("utf-8", "replace")

    # Stack

    def push(self, value: Any) -> None:
        """Push a value."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Take the top value, which may not be a mark."""
        value = self._stack.pop()
        if value is MARK:
            raise ValueError("a mark instead of a value")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the topmost mark, and the mark."""
        taken = []
        while (value := self._stack.pop()) is not MARK:
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
        if count > KEPT_CHARS:
            self.skip(count)
            self.push(OPAQUE)
        else:
            self.push(self.read(count).decode("utf-8", "replace"))

    def blob(self, count: int) -> None:
        """Push bytes that nobody looks at."""
        self.skip(count)
        self.push(OPAQUE)

    def name_global(self, module: Any, name: Any) -> None:
        """Push a global and note its name."""
        if not isinstance(module, str) or not isinstance(name, str):
            # Computed names are legal opcodes; no pickler writes them.
            module, name = "?", "?"
        full = f"{module}.{name}"[:KEPT_CHARS]
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
            inner = Machine(self._stream, self._handlers, self)
            inner.run()
            self.position = inner.position
            self.nested.append(inner.opcodes)
            return
        shape = state.get("shape")
        if not isinstance(shape, tuple) or not all(type(axis) is int for axis in shape):
            raise ValueError("an array without a shape")
        if min(shape, default=0) < 0:
            raise ValueError("a negative shape")
        if state.get("numpy_array_alignment_bytes") is not None:
            padding = self.number(1)
            del self._opcodes[-1:]
            self._pass(padding)
        self._pass(math.prod(shape) * size)


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
