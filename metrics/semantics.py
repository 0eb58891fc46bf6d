"""PromQL's rate, increase and histogram_quantile on plain numbers, bit for bit.

The embedded monitor and Prometheus must show the same figures for the same samples, so the
order of the arithmetic follows Prometheus: 2.x by default, 3.x where ``prom3`` is set.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Prometheus 3 takes bucket counts that differ by less than this, relatively, as equal.
_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A range of time in milliseconds since 1970; whether ``start`` belongs to it depends."""

    start: int
    end: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.start) / 1000

    def first(self, *, prom3: bool) -> int:
        """First millisecond of the window: 2.x counts the start, 3.x does not."""
        return self.start + 1 if prom3 else self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The samples of a target's series within a window, as far as a rate needs them.

    ``first`` are the values of the first sample; ``grown`` is how much each series grew up to
    the last one, resets corrected; ``count`` is the number of samples; times in milliseconds.
    """

    first_at: int
    last_at: int
    count: int
    first: Sequence[float]
    grown: Sequence[float]


def increase(
    span: Span, window: Window, *, prom3: bool = False, part: slice = slice(None)
) -> list[float] | None:
    """Compute the ``increase`` of the series in ``part``; ``rate`` is that by the window's seconds.

    None if there are less than two samples, as Prometheus has no answer then.
    """
    if span.count < 2:
        return None
    sampled = (span.last_at - span.first_at) / 1000
    spacing = sampled / (span.count - 1)
    threshold = spacing * 1.1
    to_start = (span.first_at - window.start) / 1000
    to_end = (window.end - span.last_at) / 1000
    tail = to_end if to_end < threshold else spacing / 2
    values: list[float] = []
    # Neighbouring buckets without requests between them are equal: compute such a run once.
    last_first = last_grown = math.nan
    value = 0.0
    for first, grown in zip(span.first[part], span.grown[part], strict=True):
        if grown != last_grown or first != last_first:
            last_first, last_grown = first, grown
            zero = sampled * (first / grown) if grown > 0 and first >= 0 else math.inf
            if prom3:
                head = min(to_start if to_start < threshold else spacing / 2, zero)
            else:
                head = min(to_start, zero)
                head = head if head < threshold else spacing / 2
            value = grown * ((sampled + head + tail) / sampled)
        values.append(value)
    return values


def histogram_quantile(
    quantile: float, bounds: Sequence[float], cumulated: Sequence[float], *, prom3: bool = False
) -> float:
    """Compute a quantile of a classic histogram.

    ``bounds`` are the finite upper bounds, rising; ``cumulated`` has one count more, that of
    +Inf. NaN without observations or bounds.
    """
    counts = _monotone(cumulated) if prom3 else list(accumulate(cumulated, max))
    observations = counts[-1]
    if not bounds or observations == 0 or math.isnan(observations):
        return math.nan
    rank = quantile * observations
    place = bisect_left(counts, rank, 0, len(bounds))
    if place == len(bounds):
        return bounds[-1]
    if place == 0:
        if bounds[0] <= 0:
            return bounds[0]
        return bounds[0] * (rank / counts[0])
    below, start = counts[place - 1], bounds[place - 1]
    return start + (bounds[place] - start) * ((rank - below) / (counts[place] - below))


def _monotone(cumulated: Sequence[float]) -> list[float]:
    counts: list[float] = []
    previous = cumulated[0]
    for count in cumulated:
        if count > previous and not _almost_equal(previous, count):
            previous = count
        counts.append(previous)
    return counts


def _almost_equal(one: float, other: float) -> bool:
    both = abs(one) + abs(other)
    return one == other or (one != 0 and other != 0 and abs(one - other) / both < _TOLERANCE)
