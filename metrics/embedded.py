"""The monitor that needs no Prometheus: keeps what was scraped and evaluates it as PromQL would.

Pure bookkeeping: the service scrapes its replicas and hands the texts over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metrics.exposition import (
    ExpositionError,
    ExpositionReader,
    Layouts,
)
from metrics.history import TIERS, History
from metrics.places import Places
from metrics.reading import Question, Reading
from metrics.semantics import Window
from metrics.steady import SteadyClock
from metrics.sums import Health, Sums
from metrics.targets import Reach
from metrics.tiers import Opened
from metrics.watches import covered, since

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from metrics.places import Crowd
    from metrics.targets import Target
    from metrics.tiers import Plan
    from metrics.watches import Stretch

FINE_SECONDS = 330.0
"""How long every scrape is kept: more than the shortest window of a burn rate."""

GAP_SECONDS = 15.0
"""Pause between two scrapes that is no hole yet: three of Prometheus' usual ones."""

_TIDY_MS = 60_000
# What a target beyond the limit keeps: enough for the rate over a minute.
_BRIEF_MS = 90_000
# So long a clock has to go on without a step before anything is forgotten by it.
_TRIED_MS = 3_600_000


class Watched:
    """One target: its reader and its history."""

    __slots__ = ("closed", "dropped", "history", "reader")

    def __init__(self, history: History) -> None:
        self.history = history
        self.reader: ExpositionReader | None = None
        self.dropped = False
        self.closed = False

    @property
    def last_at(self) -> int:
        """Time of the last scrape, in milliseconds."""
        return self.history.last_at


class EmbeddedMonitor:
    """Histories of all targets, indexed by run, so that a reading costs what its run has.

    Times are in seconds. Scrapes come with steady ones, as ``now`` tells them; questions are asked, and
    answered, with those of the wall clock. ``fine_seconds`` is how long every scrape is kept; ``plans`` say what
    is kept after that; ``gap_seconds`` is the longest pause between two scrapes of a target that
    counts as watched. ``prom3`` evaluates as Prometheus 3 does, else as 2. Memory is bounded:
    ``max_targets`` histories at most, as many again that hold the last 90 s only, and ``max_bytes`` over
    all of them, about.
    """

    def __init__(
        self,
        *,
        fine_seconds: float = FINE_SECONDS,
        gap_seconds: float = GAP_SECONDS,
        plans: Sequence[Plan] = TIERS,
        prom3: bool = False,
        clock: SteadyClock | None = None,
        max_targets: int = 2000,
        max_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        self.prom3 = prom3
        self.clock = clock or SteadyClock()
        self._fine = _ms(fine_seconds)
        self._gap = _ms(gap_seconds)
        self._plans = plans
        self._keep = max((plan.keep for plan in plans), default=self._fine)
        self._max_bytes = max_bytes
        self._runs: dict[str, dict[Target, Watched]] = {}
        self._layouts: Layouts = {}
        self.opened = Opened()
        """Blocks of histories that were looked into lately, and how many were found rotten."""
        self._places = Places(max_targets)
        self._tidied_at = 0
        self._began: int | None = None
        self.gone: set[str] = set()
        """Ids of the targets that were forgotten since somebody emptied this."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def crowd(self) -> Crowd:
        """How many targets have a history, a brief one, and none."""
        return self._places.crowd

    @property
    def size(self) -> int:
        """Bytes held by all histories, about."""
        return sum(watched.history.size for _, watched in self.watched())

    def watched(self) -> Iterator[tuple[Target, Watched]]:
        """Yield every target."""
        for run in self._runs.values():
            yield from run.items()

    def ingest(self, target: Target, at: float, text: str | None) -> bool:
        """Take one scrape, begun at the steady time ``at``; None means that it failed.

        Answers whether the target counts as up: a text that cannot be taken whole is a failed
        scrape. A time that is not after the target's last one is not recorded.
        """
        now = _ms(at)
        self._tidy(now)
        watched = self._watched(target, now)
        scrape = None
        if text is not None:
            if watched.reader is None:
                watched.reader = ExpositionReader(self._layouts, probes=target.is_gateway)
            try:
                scrape = watched.reader.read(text)
            except ExpositionError:
                scrape = None
        if now > watched.last_at and target not in self._places.refused:
            if scrape is None:
                watched.history.add(now, None)
            else:
                watched.history.add(now, scrape.counters, scrape.in_progress)
        return scrape is not None

    def resume(self, target: Target, history: History) -> None:
        """Go on from a history that was kept before; only for targets not seen yet."""
        run = self._runs.setdefault(target.run_id, {})
        if target not in run and self._places.give(target) == "whole":
            run[target] = watched = Watched(history)
            watched.dropped = True
            self._places.dropped(target)
        elif target not in run:
            self._places.leave(target)
            self.gone.add(target.id)

    def new_history(self, *, brief: bool = False) -> History:
        """Return the history of a target that nothing is known of."""
        if brief:
            return History(fine=min(self._fine, _BRIEF_MS), gap=self._gap, plans=())
        return History(fine=self._fine, gap=self._gap, plans=self._plans)

    def now(self) -> float:
        """Return the steady time, for scrapes."""
        return self.clock.now()

    def drop(self, target: Target) -> None:
        """Expect no further scrape of the target; what it showed still counts."""
        self._places.dropped(target)
        watched = self._runs.get(target.run_id, {}).get(target)
        if watched is not None:
            watched.dropped = True
            watched.reader = None

    def forget(self, run_id: str) -> None:
        """Forget everything of a deleted run."""
        for target in list(self._runs.get(run_id, {})):
            self._remove(target)

    def read(self, run_id: str, question: Question, at: float) -> Reading:
        """Read a run's sums and quantiles up to a time."""
        window = self._window(question.seconds, at)
        sums = Sums(question, prom3=self.prom3)
        health = Health()
        in_progress: list[float] = []
        # Sums of floats depend on their order: Prometheus adds in the order of the labels.
        for target, watched in sorted(self._runs.get(run_id, {}).items(), key=_by_labels):
            if question.environment not in (None, target.environment):
                continue
            history = watched.history
            span = history.span(window, self.opened, prom3=self.prom3)
            if span is not None:
                sums.take(span, window)
            if not (question.health or question.recent or question.in_progress):
                continue
            tally = history.tally(window, self.opened, prom3=self.prom3)
            if tally.samples:
                in_progress.append(tally.load / tally.samples)
            if target.is_gateway:
                continue
            health.take(tally.scrapes, tally.samples, history.last_before(window.end))
            if question.recent:
                recent = Window(start=window.end - _ms(question.seconds / 2), end=window.end)
                health.recent += history.tally(recent, self.opened, prom3=self.prom3).scrapes
        return Reading(
            at=at,
            seconds=question.seconds,
            **sums.fields(),
            **(health.fields(self.clock.skew) if question.health else {}),
            recent_scrapes=health.recent if question.recent else None,
            in_progress=sum(in_progress) if question.in_progress and in_progress else None,
            watched=self.watched_seconds(run_id, question, at) if question.watched else None,
        )

    def reach(self, run_id: str, environment: str | None, at: float) -> Reach:
        """Say which of a run's replicas can be read.

        One cannot if it was not once, or not for longer than a pause between two scrapes may be.
        """
        read, unread = 0, []
        for target, watched in sorted(self._runs.get(run_id, {}).items(), key=_by_labels):
            if target.is_gateway or environment not in (None, target.environment):
                continue
            history = watched.history
            if watched.dropped or history.last_at < 0:
                continue
            if history.last_good_at < self._window(0, at).end - self._gap:
                unread.append(target)
            else:
                read += 1
        return Reach(read, tuple(unread))

    def watched_seconds(self, run_id: str, question: Question, at: float) -> float:
        """Return for how long of a window a run's deployments were looked at.

        The service's own target of a deployment is scraped as long as that is wanted.
        """
        window = self._window(question.seconds, at)
        looks: dict[str, list[Stretch]] = {}
        known_from: dict[str, int] = {}
        for target, watched in self._runs.get(run_id, {}).items():
            if question.environment not in (None, target.environment):
                continue
            if target in self._places.brief:
                known_from[target.environment] = window.end - _BRIEF_MS
            if target.is_gateway:
                looks.setdefault(target.environment, []).extend(watched.history.stretches)
        return (
            sum(
                covered(since(stretches, known_from.get(environment, 0)), window)
                for environment, stretches in looks.items()
            )
            / 1000
        )

    def _window(self, seconds: float, at: float) -> Window:
        """Translate a window up to a time of the wall clock to steady times."""
        end = _ms(at + self.clock.skew)
        return Window(start=end - _ms(seconds), end=end)

    def _watched(self, target: Target, now: int) -> Watched:
        watched = self._runs.get(target.run_id, {}).get(target)
        if watched is None:
            self._make_room()
            kept = self._places.give(target)
            watched = Watched(self.new_history(brief=kept != "whole"))
            if kept is None:
                return watched
            self._runs.setdefault(target.run_id, {})[target] = watched
        elif now < watched.last_at - self._fine:
            watched.history.rewind(now, self.opened)
        self._places.scraped(target)
        watched.dropped = watched.closed = False
        return watched

    def _make_room(self) -> None:
        """Give up the history that ended first; none that is still scraped goes for another one."""
        if self._places.are_taken and self._places.ended:
            last_at, target = min(
                (self._runs[target.run_id][target].last_at, target) for target in self._places.ended
            )
            self._remove(target)
            self._forget_watch(target, last_at)

    def _promote(self) -> None:
        """Let those with a brief history have a whole one, as far as there is room now."""
        for target in list(self._places.brief):
            watched = self._runs[target.run_id][target]
            if watched.dropped:
                continue
            self._make_room()
            if self._places.are_taken:
                return
            self._places.promote(target)
            watched.history.widen(self._fine, self._plans)
            self._forget_watch(target, watched.last_at)

    def _tidy(self, now: int) -> None:
        if abs(now - self._tidied_at) < _TIDY_MS:
            return
        self._tidied_at = now
        if self._began is None:
            self._began = now
        # What is old by a clock that jumped, or is wrong at the start, is not old.
        old = min(now, now - _ms(self.clock.skew)) if now - self._began >= _TRIED_MS else 0
        for target, watched in list(self.watched()):
            if watched.last_at < old - self._keep:
                self._remove(target)
                continue
            watched.history.expire(old)
            if watched.dropped and not watched.closed and watched.last_at < now - self._fine:
                if target in self._places.brief:
                    self._remove(target)
                    continue
                watched.closed = True
                watched.history.close()
        self._promote()
        self._shrink()

    def _shrink(self) -> None:
        """Give up ended histories, the oldest first, then minutes of the largest, then older halves.

        Minutes are given back once there is room for them.
        """
        sizes = {target: watched.history.size for target, watched in self.watched()}
        surplus = sum(sizes.values()) - self._max_bytes
        if surplus <= 0:
            if surplus < -self._max_bytes // 2:
                for target, watched in self.watched():
                    if target not in self._places.brief:
                        watched.history.widen(self._fine, self._plans)
            return
        ended = [(watched.last_at, target) for target, watched in self.watched() if watched.closed]
        for last_at, target in sorted(ended):
            if surplus <= 0:
                return
            surplus -= sizes.pop(target)
            self._remove(target)
            self._forget_watch(target, last_at)
        largest = sorted(sizes, key=lambda one: -sizes[one])
        for give_up in (self._give_up_minutes, self._give_up_half):
            for target in largest:
                if surplus <= 0:
                    return
                history = self._runs[target.run_id][target].history
                before = history.size
                give_up(target, history)
                surplus -= before - history.size

    def _give_up_minutes(self, _target: Target, history: History) -> None:
        history.shorten(_BRIEF_MS)

    def _give_up_half(self, target: Target, history: History) -> None:
        self._forget_watch(target, history.thin())

    def _forget_watch(self, target: Target, until: int) -> None:
        """Note that of a deployment not all is known any more up to a time."""
        for other, watched in self._runs.get(target.run_id, {}).items():
            if other.is_gateway and other.environment == target.environment:
                watched.history.forget_watch(until)

    def _remove(self, target: Target) -> None:
        run = self._runs[target.run_id]
        del run[target]
        self._places.leave(target)
        self.gone.add(target.id)
        if not run:
            del self._runs[target.run_id]


def _by_labels(item: tuple[Target, Watched]) -> Target:
    return item[0]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
