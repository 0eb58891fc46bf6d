"""Where figures come from: Prometheus while it answers, the embedded monitor else."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from metrics.client import BuildInfo, MetricsUnavailableError
from metrics.reading import Reading
from metrics.source import SourceChoice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from metrics.embedded import EmbeddedMonitor
    from metrics.reading import Question, Source

logger = logging.getLogger(__name__)

_AT_ONCE = 4
# A series of the embedded monitor lets others have their turn every so many points.
_POINTS_AT_ONCE = 4
# Long windows are much work: they must not take the places of the rates.
_LONG_AT_ONCE = 2
# A Prometheus that did not say its version is asked again after so many seconds.
_VERSION_SECONDS = 60.0


Answer = tuple["Source", Reading]


class Querier(Protocol):
    """What is asked of Prometheus; everything raises MetricsUnavailableError."""

    async def read(self, run_id: str, questions: Sequence[Question], at: float) -> list[Reading]:
        """Answer questions about a run at a time."""

    async def series(
        self, run_id: str, question: Question, start: float, end: float, step: float
    ) -> list[Reading]:
        """Answer a question at every step."""

    async def build_info(self) -> BuildInfo:
        """Say which version it is."""

    async def is_ready(self) -> bool:
        """Whether it answers queries at the moment; never raises."""


class Sources:
    """Both sources, and which of them is asked; ``clock`` is one that never goes back."""

    def __init__(
        self,
        embedded: EmbeddedMonitor,
        prometheus: Querier | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.embedded = embedded
        self._prometheus = prometheus
        self._choice = SourceChoice(prometheus=prometheus is not None)
        self._clock = clock
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._long_places = asyncio.Semaphore(_LONG_AT_ONCE)
        self._asks_version_at = -math.inf
        self._probe: asyncio.Task[None] | None = None

    @property
    def current(self) -> Source:
        """The source that is asked now."""
        return self._choice.current

    @property
    def prometheus_is_up(self) -> bool | None:
        """Whether Prometheus answers; None if there is none to ask."""
        return self._choice.prometheus_is_up

    async def ask_prometheus(
        self, run_id: str, questions: Sequence[Question], at: float
    ) -> list[Reading] | None:
        """Ask Prometheus; None if there is none.

        Raises:
            MetricsUnavailableError: it did not answer, or is given up for the time being.
        """

        async def ask(prometheus: Querier) -> list[Reading]:
            return await prometheus.read(run_id, questions, at)

        return await self._ask(ask)

    async def ask_prometheus_long(
        self, run_id: str, questions: Sequence[Question], at: float
    ) -> list[Reading]:
        """Ask Prometheus about long windows: that it is slow with them says nothing of the others.

        They end when it is asked; ``at`` is before the wait for a place.

        Raises:
            MetricsUnavailableError: there is none, it did not answer, or it is given up.
        """
        since = self._clock()
        async with self._long_places:
            if self._prometheus is None or self._choice.current != "prometheus":
                raise MetricsUnavailableError("given up until it is ready")
            return await self._prometheus.read(run_id, questions, at + self._clock() - since)

    def best(self, run_id: str, question: Question, at: float, theirs: Reading | None) -> Answer:
        """Return Prometheus' answer, unless we watched the window longer.

        It may have been started later than the deployment, keep less than the window, or have
        been away for a while. If it has no counters at all where we have some, its scrapes fail (its
        token ran out, say): that all replicas look down to it says nothing of them. Nor is it
        believed where its quantiles of a long window leave out lives that were short.
        """
        if theirs is None:
            return "embedded", self.embedded.read(run_id, question, at)
        if question.recent and not theirs.is_fresh:
            # It answers, and scrapes no more: what it saw last would pass for the whole window.
            reading = self.embedded.read(run_id, question, at)
            if reading.is_fresh:
                return "embedded", reading
        if question.watched:
            ours = self.embedded.watched_seconds(run_id, question, at)
            if not theirs.is_watched_like(ours):
                return "embedded", self.embedded.read(run_id, question, at)
            if theirs.requests is None or (theirs.is_sketchy and theirs.is_watched_by(ours)):
                reading = self.embedded.read(run_id, question, at)
                if reading.requests is not None:
                    return "embedded", reading
        return "prometheus", theirs

    async def series(
        self, run_id: str, question: Question, times: Sequence[float], step: float
    ) -> tuple[Source, list[Reading]]:
        """Answer a question at these times, which lie ``step`` seconds apart.

        Moments that Prometheus knows nothing of are answered by the embedded monitor; the source is
        who told most of them.
        """

        async def ask(prometheus: Querier) -> list[Reading]:
            return await prometheus.series(run_id, question, times[0], times[-1], step)

        try:
            # A month of points may well be too much for it, and the rates are not.
            readings = await self._ask(ask, counts=False)
        except MetricsUnavailableError:
            readings = None
        found = [] if readings is None else readings
        found = found or [Reading(at=at, seconds=question.seconds) for at in times]
        unknown = [place for place, reading in enumerate(found) if reading.requests is None]
        for number, place in enumerate(unknown):
            if number % _POINTS_AT_ONCE == 0:
                await asyncio.sleep(0)
            found[place] = self.embedded.read(run_id, question, found[place].at)
        ours = sum(found[place].requests is not None for place in unknown)
        theirs = len(found) - len(unknown)
        return "prometheus" if theirs and theirs >= ours else "embedded", found

    async def _ask(
        self, ask: Callable[[Querier], Awaitable[list[Reading]]], *, counts: bool = True
    ) -> list[Reading] | None:
        """Ask Prometheus; ``counts`` says whether a failure speaks against asking it again."""
        prometheus = self._prometheus
        if prometheus is None:
            return None
        self._look_whether_it_is_back(prometheus)
        async with self._places:
            if self._choice.current != "prometheus":
                raise MetricsUnavailableError("given up until it is ready")
            if self.embedded.clock.was_put_back:
                raise MetricsUnavailableError("the clock was put back: it knows the old times only")
            try:
                await self._learn_version(prometheus)
                readings = await ask(prometheus)
            except MetricsUnavailableError as error:
                logger.debug("Prometheus does not answer: %s", error)
                if counts:
                    self._choice.failed(self._clock())
                raise
        if counts:
            self._choice.succeeded()
        return readings

    async def _learn_version(self, prometheus: Querier) -> None:
        """Let the embedded monitor evaluate as this Prometheus does, if it says which it is."""
        now = self._clock()
        if now >= self._asks_version_at:
            self._asks_version_at = now + _VERSION_SECONDS
            with suppress(MetricsUnavailableError):
                self.embedded.prom3 = (await prometheus.build_info()).prom3
                self._asks_version_at = math.inf

    def _look_whether_it_is_back(self, prometheus: Querier) -> None:
        if self._choice.probe_due(self._clock()):
            self._probe = asyncio.create_task(self._look(prometheus))

    async def _look(self, prometheus: Querier) -> None:
        if await prometheus.is_ready():
            # It may be another version than before.
            self._asks_version_at = -math.inf
            self._choice.returned()
        else:
            self._choice.failed(self._clock())
