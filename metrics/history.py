"""What one target showed: every scrape for minutes, then one in five minutes for a month.

A window needs only its first and last sample and the number between them, because counters are
kept with their resets corrected. A target's first sample is always kept, so that a window over
its whole life is exact; a window that begins in the coarse part begins at its next sample there.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from operator import add, lt, sub
from typing import TYPE_CHECKING

from metrics.exposition import BUCKETS_FROM
from metrics.semantics import Span, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENTRY_BYTES = 96
"""What a coarse sample costs beside its packed growth."""


class Growth:
    """How a target's series grew from one coarse sample to the next, packed into bytes."""

    @staticmethod
    def pack(earlier: Sequence[float], later: Sequence[float]) -> bytes:
        """Pack the difference of two vectors; buckets that nothing fell into cost nothing."""
        grown = _uncumulated(list(map(sub, later, earlier)))
        return _packed({slot: value for slot, value in enumerate(grown) if value})

    @staticmethod
    def merge(earlier: bytes, later: bytes) -> bytes:
        """Join the growth of two steps."""
        grown = _unpacked(earlier)
        for slot, value in _unpacked(later).items():
            grown[slot] = grown.get(slot, 0.0) + value
        return _packed(grown)

    @staticmethod
    def apply(vector: Sequence[float], growths: Sequence[bytes]) -> array[float]:
        """Compute the vector after these steps."""
        values = _uncumulated(vector)
        for growth in growths:
            for slot, value in _unpacked(growth).items():
                values[slot] += value
        return array("d", values[:BUCKETS_FROM] + list(accumulate(values[BUCKETS_FROM:])))


class Samples:
    """The good scrapes of a target.

    ``fine`` is how long every sample is kept, ``coarse`` the spacing after that, ``keep`` how
    long those are kept, all in milliseconds. Above ``coarse_bytes`` the spacing doubles.
    """

    __slots__ = (
        "_bases",
        "_bin",
        "_coarse",
        "_coarse_bases",
        "_coarse_bytes",
        "_coarse_counts",
        "_coarse_last",
        "_coarse_limit",
        "_coarse_times",
        "_count",
        "_fine",
        "_growths",
        "_keep",
        "_origin",
        "_raws",
        "_times",
    )

    def __init__(self, *, fine: int, coarse: int, keep: int, coarse_bytes: int) -> None:
        self._fine, self._coarse, self._keep = fine, coarse, keep
        self._coarse_limit = coarse_bytes
        self._count = 0
        self._times: array[int] = array("q")
        self._raws: list[array[float]] = []
        # What resets took away, to be added to the raw values; one array between two resets.
        self._bases: list[array[float]] = []
        self._bin: int | None = None
        self._coarse_times: array[int] = array("q")
        self._coarse_counts: array[int] = array("q")
        self._coarse_bases: list[array[float]] = []
        self._growths: list[bytes] = []
        self._origin: array[float] = array("d")
        self._coarse_last: array[float] = array("d")
        self._coarse_bytes = 0

    @property
    def size(self) -> int:
        """Bytes held, about."""
        distinct = {id(raw) for raw in self._raws} | {id(base) for base in self._coarse_bases}
        return self._coarse_bytes + 8 * len(self._origin) * (len(distinct) + 2)

    def add(self, at: int, raw: array[float]) -> None:
        """Take a sample that is later than every other."""
        if self._raws:
            last, base = self._raws[-1], self._bases[-1]
            if raw == last:
                raw = last
            elif any(map(lt, raw, last)):
                lost = (old if new < old else 0.0 for new, old in zip(raw, last, strict=True))
                base = array("d", map(add, base, lost))
        else:
            base = array("d", bytes(8 * len(raw)))
        self._count += 1
        self._times.append(at)
        self._raws.append(raw)
        self._bases.append(base)
        self._trim_fine(at - self._fine)
        if at // self._coarse != self._bin:
            self._bin = at // self._coarse
            self._add_coarse(at, raw, base)

    def life(self) -> tuple[Span, array[float]] | None:
        """Summarise all there is, for ``resume``: its span, and the values of its last sample."""
        if not self._times:
            return None
        span = self.within(Window(start=0, end=self._times[-1]))
        return None if span is None else (span, self._raws[-1])

    def resume(self, span: Span, last: array[float]) -> None:
        """Begin with what another one lived through: its first sample and its last."""
        self.add(span.first_at, array("d", span.first))
        if span.last_at > span.first_at:
            total = map(add, span.first, span.grown)
            self._times.append(span.last_at)
            self._raws.append(last)
            self._bases.append(array("d", map(sub, total, last)))
        self._count = span.count

    def close(self) -> None:
        """Keep only the last sample singly: none follows, and no short window looks back so far."""
        if self._times:
            self._trim_fine(self._times[-1])

    def expire(self, now: int) -> None:
        """Forget what is older than the longest window."""
        oldest = bisect_left(self._coarse_times, now - self._keep)
        if oldest == len(self._coarse_times):
            oldest -= 1
        if oldest <= 0:
            return
        self._origin = Growth.apply(self._origin, self._growths[1 : oldest + 1])
        self._coarse_bytes -= sum(len(growth) + _ENTRY_BYTES for growth in self._growths[:oldest])
        del self._coarse_times[:oldest], self._coarse_counts[:oldest]
        del self._coarse_bases[:oldest], self._growths[:oldest]

    def within(self, window: Window, *, prom3: bool = False) -> Span | None:
        """Look at the window's samples; None if it has none."""
        last = bisect_right(self._times, window.end) - 1
        if last < 0:
            return None
        start = window.first(prom3=prom3)
        if self._times[last] < start:
            return None
        raw, base = self._raws[last], self._bases[last]
        count = self._count - len(self._times) + last + 1
        first_at, first_count, first_raw, first_base = self._first(start)
        grown = array("d", map(sub, raw, first_raw))
        if base is not first_base:
            grown = array("d", map(add, grown, map(sub, base, first_base)))
        return Span(
            first_at=first_at,
            last_at=self._times[last],
            count=count - first_count + 1,
            first=first_raw,
            grown=grown,
        )

    def _first(self, start: int) -> tuple[int, int, array[float], array[float]]:
        place = bisect_left(self._coarse_times, start)
        if start < self._times[0] and place < len(self._coarse_times):
            at = self._coarse_times[place]
            if at < self._times[0]:
                base = self._coarse_bases[place]
                total = Growth.apply(self._origin, self._growths[1 : place + 1])
                raw = array("d", map(sub, total, base))
                return at, self._coarse_counts[place], raw, base
        index = bisect_left(self._times, start)
        count = self._count - len(self._times) + index + 1
        return self._times[index], count, self._raws[index], self._bases[index]

    def _trim_fine(self, oldest: int) -> None:
        surplus = min(bisect_left(self._times, oldest), len(self._times) - 1)
        if surplus > 0:
            del self._times[:surplus], self._raws[:surplus], self._bases[:surplus]

    def _add_coarse(self, at: int, raw: array[float], base: array[float]) -> None:
        total = array("d", map(add, raw, base))
        if not self._coarse_times:
            self._origin = self._coarse_last = total
        growth = Growth.pack(self._coarse_last, total)
        self._coarse_last = total
        self._coarse_times.append(at)
        self._coarse_counts.append(self._count)
        self._coarse_bases.append(base)
        self._growths.append(growth)
        self._coarse_bytes += len(growth) + _ENTRY_BYTES
        if self._coarse_bytes > self._coarse_limit and len(self._coarse_times) > 8:
            self._thin()

    def _thin(self) -> None:
        """Double the spacing: keep the first sample, every second, and the last."""
        self._coarse *= 2
        self._bin = self._coarse_times[-1] // self._coarse
        kept = [0, *range(2, len(self._coarse_times), 2)]
        old = self._growths
        growths = [old[0], *(Growth.merge(old[place - 1], old[place]) for place in kept[1:])]
        if len(self._coarse_times) % 2 == 0:
            kept.append(len(self._coarse_times) - 1)
            growths.append(old[-1])
        self._coarse_times = array("q", (self._coarse_times[place] for place in kept))
        self._coarse_counts = array("q", (self._coarse_counts[place] for place in kept))
        self._coarse_bases = [self._coarse_bases[place] for place in kept]
        self._growths = growths
        self._coarse_bytes = sum(len(growth) + _ENTRY_BYTES for growth in growths)


class Probes:
    """Whether a target could be scraped, over time: the ``up`` of Prometheus.

    Each entry is a scrape and how many scrapes, and how many good ones, came before it.
    """

    __slots__ = ("_bin", "_coarse", "_fine", "_keep", "_long", "_scrapes", "_short", "_ups")

    def __init__(self, *, fine: int, coarse: int, keep: int) -> None:
        self._fine, self._coarse, self._keep = fine, coarse, keep
        self._scrapes = 0
        self._ups = 0
        self._bin: int | None = None
        self._short = (array("q"), array("q"), array("q"))
        self._long = (array("q"), array("q"), array("q"))

    def add(self, at: int, *, up: bool) -> None:
        """Take a scrape that is later than every other."""
        self._append(self._short, at)
        self._cut(self._short, at - self._fine)
        if at // self._coarse != self._bin:
            self._bin = at // self._coarse
            self._append(self._long, at)
        self._scrapes += 1
        self._ups += up

    def life(self) -> tuple[int, int, int] | None:
        """Summarise all there is, for ``resume``: first scrape, good scrapes, all scrapes."""
        if not self._long[0]:
            return None
        first, scrapes, ups = (column[0] for column in self._long)
        return first, self._ups - ups, self._scrapes - scrapes

    def resume(self, first: int, ups: int, scrapes: int) -> None:
        """Begin with what another one counted since its first scrape."""
        self.add(first, up=False)
        self._ups, self._scrapes = ups, scrapes

    def close(self) -> None:
        """Keep only the last scrape singly: none follows, and no short window looks back so far."""
        if self._short[0]:
            self._cut(self._short, self._short[0][-1])

    def expire(self, now: int) -> None:
        """Forget what is older than the longest window."""
        self._cut(self._long, now - self._keep)

    def last(self, end: int) -> int | None:
        """Find the time of the last scrape up to ``end`` that is still held singly."""
        place = bisect_right(self._short[0], end) - 1
        return self._short[0][place] if place >= 0 else None

    def within(self, window: Window, *, prom3: bool = False) -> tuple[int, int]:
        """Count the good scrapes of the window, and all of them."""
        ups_before, before = self._before(window.first(prom3=prom3))
        ups, scrapes = self._before(window.end + 1)
        return max(ups - ups_before, 0), max(scrapes - before, 0)

    def _before(self, at: int) -> tuple[int, int]:
        short, long = self._short, self._long
        if short[0] and at <= short[0][0]:
            place = bisect_left(long[0], at)
            if place < len(long[0]) and long[0][place] < short[0][0]:
                return long[2][place], long[1][place]
        place = bisect_left(short[0], at)
        if place < len(short[0]):
            return short[2][place], short[1][place]
        return self._ups, self._scrapes

    def _append(self, entries: tuple[array[int], array[int], array[int]], at: int) -> None:
        for column, value in zip(entries, (at, self._scrapes, self._ups), strict=True):
            column.append(value)

    @staticmethod
    def _cut(entries: tuple[array[int], array[int], array[int]], oldest: int) -> None:
        surplus = min(bisect_left(entries[0], oldest), len(entries[0]) - 1)
        if surplus > 0:
            for column in entries:
                del column[:surplus]


def _uncumulated(vector: Sequence[float]) -> list[float]:
    buckets = vector[BUCKETS_FROM:]
    return [*vector[: BUCKETS_FROM + 1], *map(sub, buckets[1:], buckets[:-1])]


def _packed(grown: dict[int, float]) -> bytes:
    if not grown:
        return b""
    slots = array("H", grown).tobytes()
    try:
        values = array("I", map(_whole, grown.values())).tobytes()
    except (OverflowError, ValueError):
        return b"d" + slots + array("d", grown.values()).tobytes()
    return b"I" + slots + values


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError("a fraction")
    return int(value)


def _unpacked(growth: bytes) -> dict[int, float]:
    if not growth:
        return {}
    kind = growth[:1].decode()
    values: array[float] = array(kind)
    number = (len(growth) - 1) // (2 + values.itemsize)
    slots = array("H")
    slots.frombytes(growth[1 : 1 + 2 * number])
    values.frombytes(growth[1 + 2 * number :])
    return dict(zip(slots, map(float, values), strict=True))
