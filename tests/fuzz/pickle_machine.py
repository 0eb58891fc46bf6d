"""The machine that follows opcodes sees every name that the real unpickler would look up."""

from __future__ import annotations

import contextlib
import io
import pickle
from typing import Any, Self

from tests.fuzz import harness

harness.instrument()

from server.artifacts.failures import InspectionError
from server.artifacts.pickle_machine import KEPT_CHARS
from server.artifacts.tripwire import scanned_pickle
from tests.corpus.every import every_technique

_PICKLES = ("pickle: what it calls", "pickle: how it is written", "joblib")
_COMPARED_BYTES = 400
_ENOUGH_NAMES = 1000


class _Anything:
    """Stands for whatever a pickle names, and takes whatever is done to it."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Anything:
        return self

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def add(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class _Recording(pickle.Unpickler):
    def __init__(self, source: io.BytesIO) -> None:
        super().__init__(source)
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.names.add(f"{module}.{name}"[:KEPT_CHARS])
        return _Anything

    def persistent_load(self, _: Any) -> Any:
        return None


def target(data: bytes) -> None:
    try:
        report = scanned_pickle(io.BytesIO(data), "member")
    except InspectionError as error:
        assert error.code.startswith("pickle_")
        return
    if (
        report.has_joblib_arrays
        or len(data) > _COMPARED_BYTES
        or len(report.globals) > _ENOUGH_NAMES
    ):
        # The plain unpickler does not know of the bytes between the opcodes.
        return
    real = _Recording(io.BytesIO(data))
    with contextlib.suppress(Exception):
        # What it had looked up until it failed counts.
        real.load()
    missed = {name for name in real.names if name not in report.globals and name.isascii()}
    assert not missed or "?.?" in report.globals, missed


def seeds() -> list[bytes]:
    return [each.make("mark") for each in every_technique() if each.group in _PICKLES]


if __name__ == "__main__":
    harness.fuzz(target, seeds)
