"""What a service level objective may promise, and how the settings write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from metrics import durations
from metrics.slo import SLO_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Number = TypeVar("_Number", int, float)

PERCENT = (50.0, 99.999)
"""Of a promise of 100 % no error would be left to have."""

LATENCY_MS = (1.0, 60_000.0)

WINDOW_SECONDS = (3600.0, SLO_SECONDS)


def number(
    kind: Callable[[str], _Number], text: str, fits: Callable[[_Number], bool], expected: str
) -> _Number:
    """Read a number that fits; every other text is a ValueError that says what was expected."""
    try:
        value = kind(text)
    except ValueError:
        # What Python says of it is about Python.
        raise ValueError(expected) from None
    if not fits(value):
        raise ValueError(expected)
    return value


def by_environment(
    low: float, high: float, what: str
) -> Callable[[str], tuple[tuple[str, float], ...]]:
    """Read numbers like ``99`` (everywhere, under the empty name) or ``dev=95,prod=99.9``."""

    def parse(text: str) -> tuple[tuple[str, float], ...]:
        found: dict[str, float] = {}
        expected = f"{what} from {low:g} to {high:g}, or some as in dev=95,prod=99"
        for part in filter(None, map(str.strip, text.split(","))):
            name, _, digits = part.rpartition("=")
            value = number(float, digits, lambda value: low <= value <= high, expected)
            if name.strip() in found:
                raise ValueError(expected)
            found[name.strip()] = value
        return tuple(found.items())

    return parse


def in_environment(
    numbers: Iterable[tuple[str, float]], environment: str, otherwise: float
) -> float:
    """Return the number of an environment: its own, that of all others, or ``otherwise``."""
    found = dict(numbers)
    return found.get(environment, found.get("", otherwise))


def window(text: str) -> float:
    """Read the window of an objective, in seconds."""
    low, high = WINDOW_SECONDS
    seconds = durations.parse(text)
    if not low <= seconds <= high:
        raise ValueError(f"a duration from {durations.write(low)} to {durations.write(high)}")
    return seconds


def window_text(text: str) -> str:
    """Check the window of an objective, and keep it as it is written."""
    window(text)
    return text


def pause(text: str) -> float:
    """Read a number of seconds; 0 is never."""
    return number(float, text, lambda value: 0 <= value < 1e9, "a number of seconds, or 0")
