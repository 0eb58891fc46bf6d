"""Durations as Prometheus writes them: ``90s``, ``1h30m``, ``30d``."""

from __future__ import annotations

import re

_UNITS = {
    "y": 365 * 86400.0,
    "w": 7 * 86400.0,
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 0.001,
}
_DURATION = re.compile(
    "".join(rf"(?:(?P<{unit}>[0-9]{{1,12}}){unit})?" for unit in _UNITS), re.ASCII
)


def parse(text: str) -> float:
    """Read a duration, in seconds.

    Raises:
        ValueError: it is none, or zero.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("a duration as in 90s, 1h30m or 30d")
    seconds = sum(
        int(number) * _UNITS[unit] for unit, number in match.groupdict().items() if number
    )
    if not seconds:
        raise ValueError("a duration above zero")
    return seconds


def write(seconds: float) -> str:
    """Write a duration, exact to the millisecond; years and weeks as days."""
    rest = max(round(seconds * 1000), 1)
    written = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        number, rest = divmod(rest, size)
        if number:
            written += f"{number}{unit}"
    return written
