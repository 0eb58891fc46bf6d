"""Adds up what several targets showed in a window."""

from __future__ import annotations

import math
from bisect import bisect_left
from operator import add
from typing import TYPE_CHECKING, Any

from metrics import names
from metrics.exposition import BUCKETS_FROM, LAYOUT, OVERLOADED_AT, PROBES_FROM
from metrics.reading import Question, requests_by_class
from metrics.semantics import Window, histogram_quantile, increase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metrics.semantics import Span

_COUNTERS = slice(BUCKETS_FROM)
_BUCKETS = slice(BUCKETS_FROM, None)
_ALL_TIMED = slice(len(LAYOUT) - 1, len(LAYOUT))


class Sums:
    """What a question wants of the vectors of several targets, summed in the order they come."""

    def __init__(self, question: Question, *, prom3: bool) -> None:
        self._question = question
        self._prom3 = prom3
        self._parts = [_COUNTERS]
        if question.quantiles:
            self._parts.append(_BUCKETS)
        elif question.bound is not None:
            slot = BUCKETS_FROM + bisect_left(names.LATENCY_BOUNDS, question.bound)
            self._parts.append(slice(slot, slot + 1))
            self._parts.append(_ALL_TIMED)
        self._sums: list[list[float]] = []

    def take(self, span: Span, window: Window) -> None:
        """Add what a target did in the window."""
        found = [increase(span, window, part=part, prom3=self._prom3) for part in self._parts]
        values = [part for part in found if part is not None]
        if not self._sums:
            self._sums = values
        elif values:
            self._sums = [
                list(map(add, mine, more)) for mine, more in zip(self._sums, values, strict=True)
            ]

    def fields(self) -> dict[str, Any]:
        """Return the fields of a reading that this makes up."""
        if not self._sums:
            return {}
        counters = self._sums[0]
        by_code = dict(zip(names.CODE_CLASSES, counters, strict=False))
        found: dict[str, Any] = {**requests_by_class(by_code)}
        found["overloaded"] = counters[OVERLOADED_AT]
        if self._question.health:
            found["probes_passed"], found["probes_failed"] = counters[PROBES_FROM:BUCKETS_FROM]
        if self._question.quantiles:
            buckets = self._sums[1]
            found["timed"] = buckets[-1]
            found["durations"] = tuple(self._quantile(q, buckets) for q in self._question.quantiles)
            if self._question.bound is not None:
                found["quick"] = buckets[bisect_left(names.LATENCY_BOUNDS, self._question.bound)]
        elif self._question.bound is not None:
            found["quick"], found["timed"] = self._sums[1][0], self._sums[2][0]
        return found

    def _quantile(self, quantile: float, buckets: Sequence[float]) -> float | None:
        value = histogram_quantile(quantile, names.LATENCY_BOUNDS, buckets, prom3=self._prom3)
        return None if math.isnan(value) else value


class Health:
    """Scrapes of replicas; those of the service itself say nothing about them."""

    def __init__(self) -> None:
        self._scrapes = 0.0
        self._good = 0.0
        self._last = 0
        self.recent = 0.0

    def take(self, scrapes: float, good: float, last_at: int | None) -> None:
        """Add a replica's scrapes, how many of them were good, and when the last one was."""
        self._last = max(self._last, last_at or 0)
        self._scrapes += scrapes
        self._good += good

    def fields(self, skew: float) -> dict[str, Any]:
        """Return the fields of a reading; ``skew`` are the seconds that the wall clock is behind."""
        return {
            "up": self._good / self._scrapes if self._scrapes else None,
            "scrapes": self._scrapes,
            "last_scrape_at": self._last / 1000 - skew if self._last else None,
        }
