"""Prometheus as the service's monitor asks it, without a Prometheus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from metrics.client import BuildInfo, MetricsUnavailableError
from metrics.promql import LONG_SECONDS
from metrics.reading import Question, Reading

if TYPE_CHECKING:
    from collections.abc import Sequence


class Answers:
    """Answers everything, and remembers what it was asked."""

    def __init__(self, *, requests: float | None = 120.0, scrapes: float = 12.0) -> None:
        self.requests = requests
        self.scrapes = scrapes
        self.version = "2.42.0"
        self.watches_since = 0.0
        self.asked: list[tuple[str, float, list[Question]]] = []
        self.ready = True
        self.is_down = False
        self.held: asyncio.Event | None = None
        """While it is not set nothing is answered."""
        self.held_long: asyncio.Event | None = None
        """The same of long windows only."""
        self.long_is_down = False
        self.scraped_ago = 1.0
        self.sketched = 1.0
        """Which share of the durations is in the quantiles of long windows."""

    @property
    def rates(self) -> list[tuple[str, float, list[Question]]]:
        """What it was asked about short windows, the rate's among them."""
        return [one for one in self.asked if not _is_long(one[2])]

    @property
    def long(self) -> list[tuple[str, float, list[Question]]]:
        """What it was asked about long windows."""
        return [one for one in self.asked if _is_long(one[2])]

    async def read(self, run_id: str, questions: Sequence[Question], at: float) -> list[Reading]:
        self.asked.append((run_id, at, list(questions)))
        for held in (self.held, self.held_long if _is_long(questions) else None):
            if held is not None:
                await held.wait()
        await asyncio.sleep(0)
        if self.long_is_down and _is_long(questions):
            raise MetricsUnavailableError("no answer within 15 s")
        self._refuse()
        return [self._reading(question, at) for question in questions]

    async def series(
        self, run_id: str, question: Question, start: float, end: float, step: float
    ) -> list[Reading]:
        self.asked.append((run_id, end, [question]))
        self._refuse()
        number = round((end - start) / step) + 1
        times = [start + place * step for place in range(number)]
        return [
            self._reading(question, at)
            if at > self.watches_since
            else Reading(at=at, seconds=question.seconds)
            for at in times
        ]

    async def build_info(self) -> BuildInfo:
        self._refuse()
        return BuildInfo(version=self.version)

    async def is_ready(self) -> bool:
        return self.ready and not self.is_down

    def _refuse(self) -> None:
        if self.is_down:
            raise MetricsUnavailableError("refused")

    def _reading(self, question: Question, at: float) -> Reading:
        return Reading(
            at=at,
            seconds=question.seconds,
            requests=self.requests,
            errors=0.0,
            scrapes=self.scrapes,
            recent_scrapes=min(self.scrapes, 6.0),
            up=1.0,
            durations=tuple(0.1 for _ in question.quantiles),
            last_scrape_at=at - self.scraped_ago,
            timed=self.requests,
            sketched=None if self.requests is None else self.sketched * self.requests,
            watched=max(min(question.seconds, at - self.watches_since), 0.0),
        )


def _is_long(questions: Sequence[Question]) -> bool:
    return any(question.seconds > LONG_SECONDS for question in questions)
