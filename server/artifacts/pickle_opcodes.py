"""What each opcode of a pickle does to the machine that follows it.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.artifacts.pickle_machine import KEPT_CHARS, MARK, OPAQUE, Built, Mapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.artifacts.pickle_machine import Machine


def _integer(text: str) -> Any:
    if text in {"00", "01"}:
        return text == "01"
    return int(text.removesuffix("L")) if len(text) < 100 else OPAQUE


def _long(machine: Machine, size: int) -> None:
    if size > 64:
        machine.blob(size)
    else:
        machine.push(machine.number(size, signed=True))


def _pair_of_lines(machine: Machine) -> None:
    module = machine.line()
    machine.name_global(module, machine.line())


def _instance(machine: Machine) -> None:
    args = tuple(machine.pop_to_mark())
    _pair_of_lines(machine)
    machine.call(args)


def _object(machine: Machine) -> None:
    maker, *args = machine.pop_to_mark()
    machine.push(Built(maker, tuple(args)))


def _stack_global(machine: Machine) -> None:
    name = machine.pop()
    machine.name_global(machine.pop(), name)


def _new_object_with_names(machine: Machine) -> None:
    machine.pop()
    machine.call(machine.pop())


def _set_item(machine: Machine) -> None:
    value = machine.pop()
    machine.put_items([machine.pop(), value])


def _mapping(machine: Machine) -> None:
    pairs = machine.pop_to_mark()
    machine.push(Mapping())
    machine.put_items(pairs)


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def handler(machine: Machine) -> None:
        taken = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(taken)))

    return handler


def _pushing(value: Any) -> Callable[[Machine], None]:
    return lambda machine: machine.push(value)


def _opaque_after(step: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def handler(machine: Machine) -> None:
        step(machine)
        machine.push(OPAQUE)

    return handler


def _extension(size: int) -> Callable[[Machine], None]:
    return lambda machine: machine.name_global("copyreg", f"extension_{machine.number(size)}")


HANDLERS: dict[bytes, Callable[[Machine], Any]] = {
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
    b"F": _opaque_after(lambda m: m.line()),
    b"G": lambda m: m.blob(8),
    b"S": lambda m: m.push(m.line().strip("'\"")[:KEPT_CHARS]),
    b"V": lambda m: m.push(m.line()[:KEPT_CHARS]),
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
    b"(": _pushing(MARK),
    b")": _pushing(()),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"]": _pushing(OPAQUE),
    b"l": _opaque_after(lambda m: m.pop_to_mark()),
    b"a": lambda m: m.pop(),
    b"e": lambda m: m.pop_to_mark(),
    b"}": lambda m: m.push(Mapping()),
    b"d": _mapping,
    b"s": _set_item,
    b"u": lambda m: m.put_items(m.pop_to_mark()),
    b"\x8f": _pushing(OPAQUE),
    b"\x90": lambda m: m.pop_to_mark(),
    b"\x91": _opaque_after(lambda m: m.pop_to_mark()),
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
    b"P": _opaque_after(lambda m: m.line()),
    b"Q": _opaque_after(lambda m: m.pop()),
    b"\x82": _extension(1),
    b"\x83": _extension(2),
    b"\x84": _extension(4),
}
