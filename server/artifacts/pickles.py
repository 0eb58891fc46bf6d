"""Reads pickles without running them: which globals they name, what they would build.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

from server.artifacts.failures import InspectionError
from server.artifacts.pickle_machine import Built, Global, Machine, Mapping
from server.artifacts.pickle_opcodes import HANDLERS


@dataclass(frozen=True, slots=True, kw_only=True)
class PickleReport:
    """What one pickle names. ``top`` is the class of its outermost object, or a word for it.

    ``value`` is its stand-in, ``has_joblib_arrays`` tells whether only joblib can load it, and
    ``sklearn_version`` which scikit-learn wrote it. ``streams`` are its opcodes and those of the
    pickles nested in it, without long values.
    """

    globals: tuple[str, ...]
    top: str
    value: Any
    has_joblib_arrays: bool
    sklearn_version: str | None
    streams: tuple[bytes, ...]


class DamagedPickleError(InspectionError):
    """A pickle that cannot be followed; ``opcodes`` are those up to there."""

    def __init__(self, evidence: str, opcodes: bytes) -> None:
        super().__init__("pickle_damaged", evidence=evidence)
        self.opcodes = opcodes


def read_pickle(stream: IO[bytes]) -> PickleReport:
    """Follow one pickle from ``stream`` to its STOP; what comes behind stays unread.

    Raises:
        DamagedPickleError: ``pickle_damaged``.
    """
    machine = Machine(stream, HANDLERS)
    try:
        value = machine.run()
    except (IndexError, KeyError, ValueError, TypeError, OverflowError, EOFError) as error:
        evidence = f"byte {machine.position}: {type(error).__name__}"
        raise DamagedPickleError(evidence, machine.opcodes) from None
    return PickleReport(
        globals=tuple(machine.globals),
        top=_word(value),
        value=value,
        has_joblib_arrays=machine.has_joblib_arrays,
        sklearn_version=machine.sklearn_version,
        streams=(machine.opcodes, *machine.nested),
    )


def _word(value: Any) -> str:
    if isinstance(value, Built):
        return value.name
    if isinstance(value, Global):
        return value.name
    return "dict" if isinstance(value, Mapping) else type(value).__name__.strip("_").lower()
