"""Monitor: the figures of a run, from Prometheus while it answers and from ourselves else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from metrics.client import MetricsUnavailableError
from metrics.slo import NOT_DEPLOYED, Summary, summarise, window_seconds
from metrics.source import Source, SourceChoice
from server.states import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from metrics.embedded import EmbeddedMonitor
    from metrics.slo import Readings
    from server.store.state import Store

# Both sources are sampled every few seconds: asking more often shows the same figures.
_FRESH_SECONDS = 1.0


class Querier(Protocol):
    """What is asked of Prometheus."""

    async def read(
        self, run_id: str, environment: str | None, at: float, slo_window: float
    ) -> Readings:
        """Read a run's sums and quantiles, or raise MetricsUnavailableError."""

    async def is_ready(self) -> bool:
        """Whether it answers queries at the moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A summary, the source it came from and the time it is of (Unix seconds)."""

    summary: Summary
    source: Source
    at: float


_Key = tuple[str, str | None]


class Monitor:
    """Summaries; a thousand pages on one run cost one reading a second."""

    def __init__(
        self,
        store: Store,
        embedded: EmbeddedMonitor,
        prometheus: Querier | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._embedded = embedded
        self._prometheus = prometheus
        self._choice = SourceChoice(prometheus=prometheus is not None)
        self._clock = clock
        self._last: dict[_Key, Shown] = {}
        self._flights: dict[_Key, asyncio.Task[Shown]] = {}
        self._probe: asyncio.Task[None] | None = None

    @property
    def source(self) -> Source:
        """The source that is asked now."""
        return self._choice.current

    @property
    def prometheus_is_up(self) -> bool | None:
        """Whether Prometheus answers; None if there is none to ask."""
        return self._choice.prometheus_is_up

    def forget(self, run_id: str) -> None:
        """Forget the figures of a deleted run."""
        self._embedded.forget(run_id)
        for key in [key for key in self._last if key[0] == run_id]:
            del self._last[key]

    async def summary(self, run_id: str, environment: str | None) -> Shown:
        """Return a run's figures, of all its environments or of one; always finite."""
        key = (run_id, environment)
        last = self._last.get(key)
        if last is not None and 0 <= self._clock() - last.at < _FRESH_SECONDS:
            return last
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.create_task(self._read(run_id, environment))
            flight.add_done_callback(lambda _task: self._flights.pop(key, None))
        # A page that is closed must not take the reading away from the others.
        shown = self._last[key] = await asyncio.shield(flight)
        return shown

    async def _read(self, run_id: str, environment: str | None) -> Shown:
        at = self._clock()
        found = [
            made
            for made in self._store.deployments_of(run_id)
            if environment is None or made.key.environment == environment
        ]
        if not found:
            return Shown(summary=NOT_DEPLOYED, source=self.source, at=at)
        first = min(made.first_wanted_at.timestamp() for made in found)
        window = window_seconds(first, at)
        deployed = any(made.wanted is Wanted.UP for made in found)
        source, readings = await self._ask(run_id, environment, at, window)
        return Shown(summary=summarise(readings, deployed=deployed), source=source, at=at)

    async def _ask(
        self, run_id: str, environment: str | None, at: float, window: float
    ) -> tuple[Source, Readings]:
        self._look_whether_it_is_back(at)
        if self._prometheus is not None and self._choice.current == "prometheus":
            try:
                readings = await self._prometheus.read(run_id, environment, at, window)
            except MetricsUnavailableError:
                self._choice.failed(at)
            else:
                self._choice.succeeded()
                # Its discovery finds a new replica seconds later than we do.
                if not readings.is_empty:
                    return "prometheus", readings
        return "embedded", self._embedded.read(run_id, environment, at, window)

    def _look_whether_it_is_back(self, at: float) -> None:
        if self._prometheus is not None and self._choice.probe_due(at):
            self._probe = asyncio.create_task(self._look(self._prometheus))

    async def _look(self, prometheus: Querier) -> None:
        if await prometheus.is_ready():
            self._choice.succeeded()
        else:
            self._choice.failed(self._clock())
