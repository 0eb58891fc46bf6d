"""Ways to write a harmful call down so that somebody who reads the pickle does not see it."""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING, Any

from tests.corpus.opcodes import (
    PROTOCOL,
    STOP,
    Raw,
    before_model,
    call,
    in_model,
    model,
    name,
    pickle_of,
    text,
    value,
)
from tests.corpus.technique import DEADLINE, LOADER, Technique

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[[str], bytes]

_MKDIR = b"cos\nmkdir\n"


def _argument(mark: str) -> bytes:
    return b"(S" + repr(mark).encode() + b"\nt"


class _Mkdir:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (self.mark,)


def _protocol(number: int) -> Make:
    return lambda mark: pickle.dumps(_Mkdir(mark), protocol=number)


def _inst(mark: str) -> bytes:
    return before_model(b"(S" + repr(mark).encode() + b"\nios\nmkdir\n0")


def _obj(mark: str) -> bytes:
    return before_model(b"(cos\nmkdir\nS" + repr(mark).encode() + b"\no0")


def _new_object(mark: str) -> bytes:
    return before_model(b"cio\nFileIO\n" + value((mark, "w")) + b"\x810")


def _popen(mark: str) -> Raw:
    return value((["touch", mark],))


def _memo(mark: str) -> bytes:
    """Names that stand far from where they are used."""
    hidden = text("os") + b"q\x07" + b"0" + text("mkdir") + b"q\x08" + b"0"
    return before_model(hidden + b"h\x07h\x08\x93" + _argument(mark) + b"R0")


def _overwritten(mark: str) -> bytes:
    """A memo entry that first holds something harmless."""
    harmless = text("collections") + b"q\x070" + text("OrderedDict") + b"q\x080"
    names = text("os") + b"q\x070" + text("mkdir") + b"q\x080"
    return before_model(harmless + names + b"h\x07h\x08\x93" + _argument(mark) + b"R0")


def _duplicated(mark: str) -> bytes:
    """The module's name is pushed once and used twice."""
    twice = text("posix") + b"2" + text("mkdir") + b"\x93" + _argument(mark) + b"R00"
    return before_model(twice)


def _escaped(mark: str) -> bytes:
    """Letters of the name are written as escapes of protocol 0."""
    return before_model(b"S'\\x6f\\x73'\nV\\u006dkdir\n\x93" + _argument(mark) + b"R0")


def _computed(mark: str) -> bytes:
    """The name is what another call returns."""
    joined = call("builtins:getattr", "", "join")
    computed = call(joined, ["mk", "dir"])
    return before_model(text("os") + computed + b"\x93" + _argument(mark) + b"R0")


def _framed(length: int) -> Make:
    def make(mark: str) -> bytes:
        body = _MKDIR + _argument(mark) + b"R0" + model() + STOP
        return PROTOCOL + b"\x95" + struct.pack("<Q", length or len(body)) + body

    return make


def _in_the_middle(mark: str) -> bytes:
    """Framing between a name's two halves, where scanners stop to look."""
    halves = text("os") + b"\x80\x04" + text("mkdir") + b"\x80\x04\x93"
    return before_model(halves + _argument(mark) + b"R0")


def _in_key(mark: str) -> bytes:
    return in_model(Raw(b"}" + call("os:mkdir", mark) + b"Ns"))


def _as_state(mark: str) -> bytes:
    return pickle_of(
        Raw(name("sklearn.linear_model._ridge:Ridge") + b")\x81" + call("os:mkdir", mark) + b"b")
    )


def _second(mark: str) -> bytes:
    return pickle_of(model()) + pickle_of(call("os:mkdir", mark))


def _first(mark: str) -> bytes:
    return pickle_of(call("os:mkdir", mark)) + pickle_of(model())


def _cut(mark: str) -> bytes:
    return PROTOCOL + _MKDIR + _argument(mark) + b"R" + model()[:-9]


def _broken(mark: str) -> bytes:
    return PROTOCOL + _MKDIR + _argument(mark) + b"R\xff" + model() + STOP


def _extension(mark: str) -> bytes:
    return before_model(b"\x82\x07" + _argument(mark) + b"R0")


def _persistent(_: str) -> bytes:
    return in_model(Raw(b"Pos.system\n"))


def _many_layers(_: str) -> bytes:
    """A key that takes time without end to hash."""
    return in_model(Raw(b"})" + b"2\x86" * 120 + b"Ns"))


def _huge(opcode: bytes, width: int) -> Make:
    size = struct.pack("<Q", (1 << (8 * width - 1)) - 1)[:width]
    return lambda _: PROTOCOL + opcode + size + b"x" + STOP


def _dotted(_: str) -> bytes:
    return before_model(text("sklearn.base") + text("warnings.sys.modules") + b"\x930")


def _no_header(mark: str) -> bytes:
    head = b"csklearn.svm._classes\nSVC\np0\n0" + _MKDIR + _argument(mark)
    return head + b"R0" + model() + STOP


# Refused by the inspection: (file, code, what the loader alone says, whether it really runs).
_INSPECTED: dict[str, tuple[Make, str, str, bool]] = {
    "written in protocol 0": (_protocol(0), "pickle_dangerous", "unsafe_pickle", True),
    "written in protocol 1": (_protocol(1), "pickle_dangerous", "unsafe_pickle", True),
    "written in protocol 2": (_protocol(2), "pickle_dangerous", "unsafe_pickle", True),
    "written in protocol 3": (_protocol(3), "pickle_dangerous", "unsafe_pickle", True),
    "written in protocol 4": (_protocol(4), "pickle_dangerous", "unsafe_pickle", True),
    "written in protocol 5": (_protocol(5), "pickle_dangerous", "unsafe_pickle", True),
    "a model without a header": (_no_header, "pickle_dangerous", "unsafe_pickle", True),
    "called by INST": (_inst, "pickle_dangerous", "unsafe_pickle", True),
    "called by OBJ": (_obj, "pickle_dangerous", "unsafe_pickle", True),
    "names in the memo": (_memo, "pickle_dangerous", "unsafe_pickle", True),
    "names in an overwritten memo": (_overwritten, "pickle_dangerous", "unsafe_pickle", True),
    "a duplicated name": (_duplicated, "pickle_dangerous", "unsafe_pickle", True),
    "an escaped name": (_escaped, "pickle_dangerous", "unsafe_pickle", True),
    "a computed name": (_computed, "pickle_dangerous", "unsafe_pickle", True),
    "a frame": (_framed(0), "pickle_dangerous", "unsafe_pickle", True),
    "headers between a name's halves": (_in_the_middle, "pickle_dangerous", "unsafe_pickle", True),
    "inside a dictionary's key": (_in_key, "pickle_dangerous", "unsafe_pickle", True),
    "as a model's state": (_as_state, "pickle_dangerous", "unsafe_pickle", True),
    "in a second pickle": (_second, "pickle_dangerous", "pickle_trailing_bytes", False),
    "in a pickle before the model's": (_first, "pickle_dangerous", "unsafe_pickle", True),
    "in a pickle that is cut off": (_cut, "pickle_dangerous", "unsafe_pickle", True),
    "before an opcode that is none": (_broken, "pickle_dangerous", "unsafe_pickle", True),
    "bytes without an end": (_huge(b"\x8e", 8), "pickle_damaged", "pickle_not_loadable", False),
    "a text without an end": (_huge(b"\x8d", 8), "pickle_damaged", "pickle_not_loadable", False),
    "a number without an end": (_huge(b"\x8b", 4), "pickle_damaged", "pickle_truncated", False),
}

_LOADED: dict[str, tuple[Make, str, bool]] = {
    "called by NEWOBJ": (_new_object, "unsafe_pickle", False),
    "a name with dots": (_dotted, "unsafe_pickle", False),
    "an extension's number": (_extension, "pickle_not_loadable", False),
    "a persistent id": (_persistent, "pickle_not_loadable", False),
}


def techniques() -> list[Technique]:
    group = "pickle: how it is written"
    inspected = [
        Technique(group=group, name=title, make=make, code=code, unpickler=alone, runs=runs)
        for title, (make, code, alone, runs) in _INSPECTED.items()
    ]
    loaded = [
        Technique(
            group=group,
            name=title,
            make=make,
            code=code,
            stopped_by=LOADER,
            unpickler=code,
            runs=runs,
        )
        for title, (make, code, runs) in _LOADED.items()
    ]
    endless = Technique(
        group=group,
        name="a key that takes for ever to hash",
        make=_many_layers,
        code="load_timeout",
        stopped_by=DEADLINE,
    )
    return [*inspected, *loaded, endless]
