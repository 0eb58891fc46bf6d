"""The monitor that needs no Prometheus: keeps what was scraped and evaluates it as PromQL would.

Pure bookkeeping: the service scrapes its replicas and hands the texts over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import add
from typing import TYPE_CHECKING

from metrics import names
from metrics.exposition import BUCKETS_FROM, ExpositionError, ExpositionReader, Layouts
from metrics.history import Probes, Samples
from metrics.semantics import Window, extrapolate, histogram_quantile
from metrics.slo import QUANTILE, RED_SECONDS, SLO_SECONDS, Readings

if TYPE_CHECKING:
    from array import array

    from metrics.semantics import Span
    from metrics.targets import Target

_ERRORS = names.CODE_CLASSES.index(names.ERROR_CLASS)
_CODES = slice(BUCKETS_FROM)
_BUCKETS = slice(BUCKETS_FROM, None)
_TIDY_MS = 60_000


class _History:
    """One target: its reader, its samples, its probes."""

    __slots__ = ("closed", "dropped", "last_at", "probes", "reader", "samples")

    def __init__(self, *, fine: int, coarse: int, keep: int, coarse_bytes: int) -> None:
        self.reader: ExpositionReader | None = None
        self.samples = Samples(fine=fine, coarse=coarse, keep=keep, coarse_bytes=coarse_bytes)
        self.probes = Probes(fine=fine, coarse=coarse, keep=keep)
        self.last_at = -1
        self.dropped = False
        self.closed = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A target's whole life in short; times in milliseconds since 1970.

    ``samples`` are the span of all good scrapes and the values of the last; ``probes`` the
    time of the first scrape, the good scrapes and all of them.
    """

    target: Target
    samples: tuple[Span, array[float]] | None
    probes: tuple[int, int, int]
    last_at: int


class _Sums:
    """Vectors of several targets, summed in the order they come."""

    __slots__ = ("buckets", "codes")

    def __init__(self) -> None:
        self.codes: list[float] | None = None
        self.buckets: list[float] | None = None

    def take(self, span: Span, window: Window, *, rates: bool, prom3: bool) -> None:
        codes = extrapolate(span, window, part=_CODES, per_second=rates, prom3=prom3)
        buckets = extrapolate(span, window, part=_BUCKETS, per_second=True, prom3=prom3)
        if codes is None or buckets is None:
            return
        self.codes = codes if self.codes is None else list(map(add, self.codes, codes))
        self.buckets = buckets if self.buckets is None else list(map(add, self.buckets, buckets))

    def total(self) -> float | None:
        return None if self.codes is None else sum(self.codes)

    def errors(self) -> float | None:
        return None if self.codes is None else self.codes[_ERRORS]

    def p95(self, *, prom3: bool) -> float | None:
        if self.buckets is None:
            return None
        value = histogram_quantile(QUANTILE, names.LATENCY_BOUNDS, self.buckets, prom3=prom3)
        return None if math.isnan(value) else value


class EmbeddedMonitor:
    """Histories of all targets, indexed by run, so that a reading costs what its run has.

    Times are in seconds. ``fine_seconds`` is how long every scrape is kept (longer than
    ``red_seconds``), ``coarse_seconds`` the spacing after that. ``prom3`` evaluates as
    Prometheus 3 does, else as 2. Memory is bounded: at most ``max_targets`` histories, of
    which each keeps at most ``coarse_bytes`` beside its last minutes.
    """

    def __init__(
        self,
        *,
        red_seconds: float = RED_SECONDS,
        fine_seconds: float = 2 * RED_SECONDS,
        coarse_seconds: float = 300.0,
        slo_seconds: float = SLO_SECONDS,
        prom3: bool = False,
        max_targets: int = 2000,
        coarse_bytes: int = 3 * 1024 * 1024,
    ) -> None:
        self._red = _ms(red_seconds)
        self._fine = _ms(max(fine_seconds, red_seconds))
        self._coarse = _ms(coarse_seconds)
        self._slo = _ms(slo_seconds)
        self._prom3 = prom3
        self._max_targets = max_targets
        self._coarse_bytes = coarse_bytes
        self._runs: dict[str, dict[Target, _History]] = {}
        self._layouts: Layouts = {}
        self._number = 0
        self._tidied_at = 0

    def __len__(self) -> int:
        return self._number

    def ingest(self, target: Target, at: float, text: str | None) -> bool:
        """Take one scrape, begun at ``at``; None means that it failed.

        Answers whether the target counts as up: a text that cannot be taken whole is a failed
        scrape. A time that is not after the target's last one is not recorded; a clock that
        was put back further than the short window starts the target anew.
        """
        now = _ms(at)
        self._tidy(now)
        history = self._history(target, now)
        vector = None
        if text is not None:
            if history.reader is None:
                history.reader = ExpositionReader(self._layouts)
            try:
                vector = history.reader.read(text)
            except ExpositionError:
                vector = None
        if now > history.last_at:
            history.last_at = now
            history.probes.add(now, up=vector is not None)
            if vector is not None:
                history.samples.add(now, vector)
        return vector is not None

    def lives(self) -> list[Life]:
        """Summarise every target's whole life, so that a new start can go on from there."""
        return [
            Life(target=target, samples=samples, probes=probes, last_at=history.last_at)
            for run in self._runs.values()
            for target, history in run.items()
            if (probes := history.probes.life()) is not None
            for samples in (history.samples.life(),)
        ]

    def resume(self, life: Life) -> None:
        """Go on from a life that was summarised before; only for targets not seen yet."""
        if life.target in self._runs.get(life.target.run_id, {}):
            return
        history = self._history(life.target, life.last_at)
        history.dropped = True
        history.last_at = life.last_at
        history.probes.resume(*life.probes)
        if life.samples is not None:
            history.samples.resume(*life.samples)

    def drop(self, target: Target) -> None:
        """Expect no further scrape of the target; what it showed still counts."""
        history = self._runs.get(target.run_id, {}).get(target)
        if history is not None:
            history.dropped = True
            history.reader = None

    def forget(self, run_id: str) -> None:
        """Forget everything of a deleted run."""
        self._number -= len(self._runs.pop(run_id, {}))

    def read(
        self, run_id: str, environment: str | None, at: float, slo_window: float | None = None
    ) -> Readings:
        """Read a run's sums and quantiles at a time, of all its environments or of one.

        ``slo_window`` in seconds: since the first deployment; the longest there is by default.
        """
        end = _ms(at)
        long = self._slo if slo_window is None else min(max(_ms(slo_window), self._red), self._slo)
        red = Window(start=end - self._red, end=end)
        slo = Window(start=end - long, end=end)
        rates, increases = _Sums(), _Sums()
        shares: list[float] = []
        scrapes = 0
        last: int | None = None
        # Sums of floats depend on their order: Prometheus adds in the order of the labels.
        for target, history in sorted(self._runs.get(run_id, {}).items(), key=_by_labels):
            if environment is not None and target.environment != environment:
                continue
            self._sum(history, red, rates, rates=True)
            self._sum(history, slo, increases, rates=False)
            if target.is_gateway:
                continue
            good, number = history.probes.within(slo, prom3=self._prom3)
            if number:
                shares.append(good / number)
                scrapes += number
                last = max(last or 0, history.probes.last(end) or 0)
        return Readings(
            at=at,
            rps=rates.total(),
            error_rps=rates.errors(),
            p95_seconds=rates.p95(prom3=self._prom3),
            slo_total=increases.total(),
            slo_errors=increases.errors(),
            slo_p95_seconds=increases.p95(prom3=self._prom3),
            up=sum(shares) / len(shares) if shares else None,
            samples=scrapes,
            last_scrape_at=last / 1000 if last else None,
        )

    def _sum(self, history: _History, window: Window, sums: _Sums, *, rates: bool) -> None:
        span = history.samples.within(window, prom3=self._prom3)
        if span is not None:
            sums.take(span, window, rates=rates, prom3=self._prom3)

    def _history(self, target: Target, now: int) -> _History:
        run = self._runs.setdefault(target.run_id, {})
        history = run.get(target)
        if history is None or now < history.last_at - self._red:
            if history is None:
                self._make_room()
                self._number += 1
            history = _History(
                fine=self._fine,
                coarse=self._coarse,
                keep=self._slo,
                coarse_bytes=self._coarse_bytes,
            )
            self._runs.setdefault(target.run_id, {})[target] = history
        history.dropped = history.closed = False
        return history

    def _make_room(self) -> None:
        """Give up the history that ended first, or else the one scraped longest ago."""
        if self._number < self._max_targets:
            return
        candidates = (
            (not history.dropped, history.last_at, target)
            for run in self._runs.values()
            for target, history in run.items()
        )
        self._remove(min(candidates)[2])

    def _tidy(self, now: int) -> None:
        if abs(now - self._tidied_at) < _TIDY_MS:
            return
        self._tidied_at = now
        gone: list[Target] = []
        for run in self._runs.values():
            for target, history in run.items():
                if history.last_at < now - self._slo:
                    gone.append(target)
                    continue
                history.samples.expire(now)
                history.probes.expire(now)
                if history.dropped and not history.closed and history.last_at < now - self._fine:
                    history.closed = True
                    history.samples.close()
                    history.probes.close()
        for target in gone:
            self._remove(target)

    def _remove(self, target: Target) -> None:
        run = self._runs[target.run_id]
        del run[target]
        self._number -= 1
        if not run:
            del self._runs[target.run_id]


def _by_labels(item: tuple[Target, _History]) -> Target:
    return item[0]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
