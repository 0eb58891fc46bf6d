"""What one target showed: every scrape for minutes, then ever fewer of them for a month.

Counters are kept with their resets corrected, so that a window needs only its first and its
last sample and the number between them. Where both are still held singly, the answer is
Prometheus' to the last bit; a window that begins earlier begins between two samples, and the
target is taken to have grown evenly from one to the other.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from itertools import pairwise
from operator import add, lt, sub
from typing import TYPE_CHECKING, NamedTuple

from metrics.growth import NOTHING
from metrics.semantics import Span, Window
from metrics.tiers import Mark, Plan, Point, Tier
from metrics.watches import Watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metrics.tiers import Opened
    from metrics.watches import Stretch

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000

TIERS = (
    Plan(spacing=MINUTE, keep=7 * HOUR, length=60),
    Plan(spacing=5 * MINUTE, keep=75 * HOUR, length=36),
    Plan(spacing=HOUR, keep=31 * DAY, length=24),
)
"""What is kept beside the newest scrapes: enough for windows of 6 hours, 3 days and 30 days."""


class Tally(NamedTuple):
    """Of a window: scrapes, good ones, and the sum of the requests in progress at the good ones."""

    scrapes: float
    samples: float
    load: float


class Newest(NamedTuple):
    """Where a target stands: what a new start of the service goes on from.

    ``mark`` is of the last scrape, ``samples`` and ``load`` are with it. ``sampled_at`` and
    ``born_at`` are the times of the last and the first good scrape; -1 if there was none.
    ``stretches`` are those in which it was watched.
    """

    mark: Mark
    samples: int
    load: float
    sampled_at: int
    born_at: int
    raw: array[float]
    base: array[float]
    stretches: tuple[Stretch, ...]


class History:
    """The scrapes of a target.

    ``fine`` is how long each of them is kept, and ``gap`` how long the longest pause between two
    of them is in which it still counts as watched; in milliseconds.
    """

    __slots__ = (
        "_base",
        "_bases",
        "_born_at",
        "_fine",
        "_load",
        "_loads",
        "_probed",
        "_raws",
        "_sampled",
        "_samples",
        "_scrapes",
        "_times",
        "_vectors",
        "_watch",
        "changed",
        "tiers",
    )

    def __init__(self, *, fine: int, gap: int = 15_000, plans: Sequence[Plan] = TIERS) -> None:
        self._fine = fine
        self._watch = Watch(gap)
        self.tiers = [Tier(plan) for plan in plans]
        self.changed = False
        """Whether something was taken since somebody said that nothing was."""
        # All scrapes, and what was before each.
        self._probed: array[int] = array("q")
        self._sampled: array[int] = array("q")
        self._loads: array[float] = array("d")
        self._scrapes = 0
        self._samples = 0
        self._load = 0.0
        # The good ones, as they were read and what resets took away before: one array between
        # two resets.
        self._times: array[int] = array("q")
        self._raws: list[array[float]] = []
        self._bases: list[array[float]] = []
        self._base: array[float] = NOTHING
        self._born_at = -1
        # How many arrays the scrapes hold: one that is like the one before it shares its array.
        self._vectors = 0

    @property
    def last_at(self) -> int:
        """Time of the last scrape; -1 before the first."""
        return self._probed[-1] if self._probed else -1

    @property
    def last_good_at(self) -> int:
        """Time of the last good scrape; -1 if there was none."""
        return self._times[-1] if self._times else -1

    @property
    def size(self) -> int:
        """Bytes held, about."""
        singly = 8 * len(NOTHING) * self._vectors + 24 * len(self._probed) + 24 * len(self._times)
        return singly + sum(tier.size for tier in self.tiers)

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """When it was watched."""
        return self._watch.stretches

    def add(self, at: int, raw: array[float] | None, in_progress: float = 0.0) -> None:
        """Take a scrape that is later than every other; None where it failed."""
        mark = Mark(at, self._scrapes, self._samples, self._load)
        self._probed.append(at)
        self._sampled.append(self._samples)
        self._loads.append(self._load)
        self._scrapes += 1
        self.changed = True
        self._watch.look(at)
        if raw is not None:
            self._take(at, raw)
            self._samples += 1
            self._load += in_progress
        self._trim(at - self._fine)
        if self._times and (due := [tier for tier in self.tiers if tier.is_due(at)]):
            point = Point(mark, self._total(len(self._times) - 1))
            for tier in due:
                tier.add(point)

    def newest(self) -> Newest:
        """Say where it stands, for ``resume``."""
        mark = Mark(self.last_at, self._scrapes - 1, self._sampled[-1], self._loads[-1])
        sampled_at, raw = -1, NOTHING
        if self._times:
            sampled_at, raw = self._times[-1], self._raws[-1]
        return Newest(
            mark=mark,
            samples=self._samples,
            load=self._load,
            sampled_at=sampled_at,
            born_at=self._born_at,
            raw=raw,
            base=self._base,
            stretches=self.stretches,
        )

    def resume(self, newest: Newest) -> None:
        """Go on from where another one stood; the tiers have their blocks already."""
        mark = newest.mark
        self._probed.append(mark.at)
        self._sampled.append(int(mark.samples))
        self._loads.append(mark.load)
        self._scrapes, self._samples = int(mark.scrapes) + 1, newest.samples
        self._load, self._born_at, self._base = newest.load, newest.born_at, newest.base
        self._watch = Watch(self._watch.gap, newest.stretches)
        if newest.sampled_at < 0:
            return
        self._times.append(newest.sampled_at)
        self._raws.append(newest.raw)
        self._vectors = 1
        self._bases.append(newest.base)
        # Between this scrape and the next one lies the time without the service.
        point = Point(mark, self._total(0))
        for tier in self.tiers:
            tier.add(point)

    def rewind(self, until: int, opened: Opened) -> None:
        """Forget the times after one, which a clock that was ahead has told; no count is lost."""
        newest = self.newest()
        for tier in self.tiers:
            tier.cut(until, opened)
        del self._probed[:], self._sampled[:], self._loads[:]
        del self._times[:], self._raws[:], self._bases[:]
        self._vectors = 0
        self.resume(
            newest._replace(
                mark=newest.mark._replace(at=min(newest.mark.at, until)),
                sampled_at=min(newest.sampled_at, until),
                born_at=min(newest.born_at, until),
                stretches=tuple(
                    (first, min(last, until)) for first, last in newest.stretches if first <= until
                ),
            )
        )
        self.changed = True

    def close(self) -> None:
        """Keep only the last scrape singly: none follows, and no short window looks back so far."""
        if self._probed:
            self._trim(self.last_at)

    def expire(self, now: int) -> None:
        """Forget what is older than each tier's time."""
        for tier in self.tiers:
            tier.expire(now)
            self.changed |= bool(tier.dropped)

    def shorten(self, fine: int) -> None:
        """Keep every scrape for a shorter time."""
        self._fine = min(self._fine, fine)
        if self._probed:
            self._trim(self.last_at - self._fine)

    def widen(self, fine: int, plans: Sequence[Plan]) -> None:
        """Keep every scrape for a longer time from now on, and tiers if there are none yet."""
        self._fine = max(self._fine, fine)
        if not self.tiers:
            self.tiers = [Tier(plan) for plan in plans]

    def thin(self) -> int:
        """Forget the older half of every tier; return the time from which all is known."""
        for tier in self.tiers:
            tier.thin()
            self.changed |= bool(tier.dropped)
        return min((tier.first_at for tier in self.tiers if tier.first_at is not None), default=0)

    def forget_watch(self, until: int) -> None:
        """Count the time before as one in which nobody looked."""
        self._watch.forget(until)
        self.changed = True

    def span(self, window: Window, opened: Opened, *, prom3: bool = False) -> Span | None:
        """Look at the window's good scrapes; None if it has none."""
        start, times = window.first(prom3=prom3), self._times
        if not times or start > times[-1] or window.end < self._born_at:
            return None
        last = bisect_right(times, window.end) - 1
        if last < 0 or not (start >= times[0] or self._is_young):
            return self._long_span(start, window.end, opened, last)
        first = bisect_left(times, start)
        if first > last:
            return None
        grown = array("d", map(sub, self._raws[last], self._raws[first]))
        base, first_base = self._bases[last], self._bases[first]
        if base is not first_base:
            grown = array("d", map(add, grown, map(sub, base, first_base)))
        return Span(
            first_at=times[first],
            last_at=times[last],
            count=last - first + 1,
            first=self._raws[first],
            grown=grown,
        )

    def tally(self, window: Window, opened: Opened, *, prom3: bool = False) -> Tally:
        """Count the window's scrapes."""
        before = self._before(window.first(prom3=prom3), opened)
        until = self._before(window.end + 1, opened)
        return Tally(*(max(now - then, 0) for now, then in zip(until[1:], before[1:], strict=True)))

    def last_before(self, end: int) -> int | None:
        """Find the time of the last scrape up to ``end`` that is still held singly."""
        place = bisect_right(self._probed, end) - 1
        return self._probed[place] if place >= 0 else None

    @property
    def _is_young(self) -> bool:
        """Whether every good scrape there was is still held singly."""
        return bool(self._times) and self._times[0] == self._born_at

    def _long_span(self, start: int, end: int, opened: Opened, last: int) -> Span | None:
        begin = self._state(start, opened)
        if last >= 0:
            last_at, total = self._times[last], self._total(last)
        else:
            ended = self._state(end, opened)
            last_at, total = ended.mark.at, ended.total
        until = self._before(end + 1, opened).samples
        count = round(until - self._before(start, opened).samples)
        if count < 1 or last_at < begin.mark.at:
            return None
        return Span(
            first_at=begin.mark.at,
            last_at=last_at,
            count=count if last_at > begin.mark.at else 1,
            first=begin.total,
            grown=array("d", map(sub, total, begin.total)),
        )

    def _state(self, at: int, opened: Opened) -> Point:
        """Return the state at a time before the scrapes that are held singly."""
        latest = self._oldest_singly()
        for tier in self.tiers:
            first = tier.first_at
            if first is not None and (first <= at or first == self._born_at):
                found = tier.at(max(at, first), latest, opened)
                self.changed |= bool(tier.dropped)
                if tier.first_at == first:
                    return found
        # All that is left begins later.
        if not self.tiers:
            return latest
        oldest = min(self.tiers, key=lambda tier: tier.first_at or latest.mark.at)
        return oldest.at(oldest.first_at or latest.mark.at, latest, opened)

    def _oldest_singly(self) -> Point:
        place = bisect_left(self._probed, self._times[0])
        scrapes = self._scrapes - len(self._probed) + place
        mark = Mark(self._probed[place], scrapes, self._sampled[place], self._loads[place])
        return Point(mark, self._total(0))

    def _before(self, at: int, opened: Opened) -> Mark:
        """Count what was before a time."""
        probed = self._probed
        if not probed or at > probed[-1]:
            return Mark(at, self._scrapes, self._samples, self._load)
        offset = self._scrapes - len(probed)
        if at >= probed[0] or not offset:
            place = bisect_left(probed, at)
            return Mark(at, offset + place, self._sampled[place], self._loads[place])
        if self._times and at >= self._born_at:
            return self._state(at, opened).mark
        return Mark(at, 0, 0, 0.0)

    def _take(self, at: int, raw: array[float]) -> None:
        if self._raws:
            last = self._raws[-1]
            if raw == last:
                raw = last
            else:
                self._vectors += 1
                if any(map(lt, raw, last)):
                    self._vectors += 1
                    lost = (old if new < old else 0.0 for new, old in zip(raw, last, strict=True))
                    self._base = array("d", map(add, self._base, lost))
        else:
            self._vectors = 1
            if self._born_at < 0:
                self._born_at = at
        self._times.append(at)
        self._raws.append(raw)
        self._bases.append(self._base)

    def _total(self, place: int) -> array[float]:
        raw, base = self._raws[place], self._bases[place]
        return raw if base is NOTHING else array("d", map(add, raw, base))

    def _trim(self, oldest: int) -> None:
        surplus = min(bisect_left(self._probed, oldest), len(self._probed) - 1)
        if surplus > 0:
            del self._probed[:surplus], self._sampled[:surplus], self._loads[:surplus]
        surplus = min(bisect_left(self._times, oldest), len(self._times) - 1)
        if surplus > 0:
            for one, other in pairwise(self._raws[: surplus + 1]):
                self._vectors -= one is not other
            for one, other in pairwise(self._bases[: surplus + 1]):
                self._vectors -= one is not other
            del self._times[:surplus], self._raws[:surplus], self._bases[:surplus]
