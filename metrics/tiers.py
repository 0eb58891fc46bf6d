"""A target's past at one spacing: a sample each minute, each five minutes, each hour.

Samples stand in blocks. Only the newest block is held as it is; the others are compressed, in
memory as on the disk. While nothing changes nothing is added: the last sample moves on instead.
"""

from __future__ import annotations

import logging
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from metrics.growth import NOTHING, Sum, between, pack

if TYPE_CHECKING:
    from array import array

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<HH")
_ENTRY = struct.Struct("<qqqdH")
# What an entry of a block that is still open costs beside its growth.
_ENTRY_BYTES = 200
_FORMAT = 1


class Mark(NamedTuple):
    """A scrape, and what was before it: scrapes, good ones, and the sum of requests in progress.

    ``at`` in milliseconds since 1970.
    """

    at: int
    scrapes: float
    samples: float
    load: float


class Point(NamedTuple):
    """The state of a target at a moment; ``total`` has its resets corrected."""

    mark: Mark
    total: array[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One tier: its spacing and how long it is kept, in milliseconds; samples of a block."""

    spacing: int
    keep: int
    length: int


class Block:
    """Samples one after the other: the growth of the first is counted from nothing."""

    __slots__ = ("growths", "marks", "size")

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.growths: list[bytes] = []
        self.size = 0

    def append(self, mark: Mark, growth: bytes) -> None:
        """Add a sample."""
        self.marks.append(mark)
        self.growths.append(growth)
        self.size += len(growth) + _ENTRY_BYTES

    def move_last(self, mark: Mark) -> None:
        """Let the last sample, since which nothing changed, be a later one."""
        self.marks[-1] = mark

    def copy(self) -> Block:
        """Return what does not change with it any more."""
        return self.first(len(self.marks))

    def first(self, number: int) -> Block:
        """Return its first samples."""
        found = Block()
        for mark, growth in zip(self.marks[:number], self.growths, strict=False):
            found.append(mark, growth)
        return found

    def dump(self) -> bytes:
        """Write it down."""
        heads = b"".join(
            _ENTRY.pack(mark.at, int(mark.scrapes), int(mark.samples), mark.load, len(growth))
            for mark, growth in zip(self.marks, self.growths, strict=True)
        )
        head = _HEAD.pack(_FORMAT, len(self.marks))
        return zlib.compress(b"".join((head, heads, *self.growths)), 1)

    @classmethod
    def load(cls, data: bytes) -> Block:
        """Read what ``dump`` wrote.

        Raises:
            ValueError: it did not write this.
        """
        block = cls()
        try:
            text = zlib.decompress(data)
            form, number = _HEAD.unpack_from(text)
            if form != _FORMAT:
                raise ValueError("another form")
            start = _HEAD.size + number * _ENTRY.size
            for place in range(number):
                *mark, length = _ENTRY.unpack_from(text, _HEAD.size + place * _ENTRY.size)
                block.append(Mark(*mark), text[start : start + length])
                start += length
        except (zlib.error, struct.error) as error:
            raise ValueError("no block") from error
        if not block.marks or start != len(text):
            raise ValueError("no block")
        return block


class Opened:
    """Blocks that were looked into lately: whoever reads a series reads the same ones again."""

    def __init__(self, limit: int = 32) -> None:
        self.rotten = 0
        """How many could not be read and were given up; the first of them is logged."""
        self._limit = limit
        self._views: OrderedDict[bytes | tuple[Block, int], View] = OrderedDict()

    def view(self, block: bytes | Block) -> View:
        """Look into a block, as it was written down or as it is."""
        key = block if isinstance(block, bytes) else (block, len(block.growths))
        found = self._views.pop(key, None)
        if found is None:
            found = View(Block.load(block) if isinstance(block, bytes) else block)
            if len(self._views) >= self._limit:
                self._views.popitem(last=False)
        self._views[key] = found
        return found

    def rot(self, number: int = 1) -> None:
        """Note blocks that cannot be read."""
        if number and not self.rotten:
            log.warning(
                "a part of the history cannot be read; it is left out, as any other will be"
            )
        self.rotten += number


class View:
    """The samples of a block with their totals, which are made as they are asked for."""

    __slots__ = ("_block", "_sum", "_totals")

    def __init__(self, block: Block) -> None:
        self._block = block
        self._sum = Sum()
        self._totals: list[array[float]] = []

    def at(self, at: int, following: Point) -> Point:
        """Return the state at a time; ``following`` is the first sample after the block."""
        marks = self._block.marks
        index = max(bisect_right(marks, at, key=_time) - 1, 0)
        if index + 1 < len(marks):
            following = self.point(index + 1)
        return _between(self.point(index), following, at)

    def point(self, place: int) -> Point:
        """Return one of its samples."""
        while len(self._totals) <= place:
            growth = self._block.growths[len(self._totals)]
            self._sum.add(growth)
            self._totals.append(
                self._sum.vector() if growth or not self._totals else self._totals[-1]
            )
        return Point(self._block.marks[place], self._totals[place])


class Tier:
    """One spacing of one target."""

    __slots__ = (
        "_bin",
        "_closed",
        "_flat",
        "_last",
        "_open",
        "_plan",
        "_starts",
        "dropped",
        "fresh",
    )

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._starts: list[int] = []
        self._closed: list[bytes] = []
        self._open = Block()
        self._last: Point | None = None
        self._bin: int | None = None
        self._flat = ""
        self.fresh: set[int] = set()
        """Starts of the blocks that were changed since somebody emptied this."""
        self.dropped: set[int] = set()
        """Starts of the blocks that were given up since somebody emptied this."""

    @property
    def size(self) -> int:
        """Bytes held, about."""
        return sum(map(len, self._closed)) + self._open.size

    @property
    def first_at(self) -> int | None:
        """Time of the first sample."""
        if self._starts:
            return self._starts[0]
        return self._open.marks[0].at if self._open.marks else None

    def is_due(self, at: int) -> bool:
        """Whether the spacing wants a sample of a time."""
        return at // self._plan.spacing != self._bin

    def add(self, point: Point) -> None:
        """Take a scrape; one that is not later than every other is none."""
        last = self._last
        if last is not None and point.mark.at <= last.mark.at:
            return
        self._bin = point.mark.at // self._plan.spacing
        growth = pack(last.total, point.total) if last is not None else b""
        flat = "" if last is None or growth else self._kind(last.mark, point.mark)
        if flat and flat == self._flat and len(self._open.marks) > 1:
            self._open.move_last(point.mark)
        else:
            self._append(point, growth)
        self._flat = flat
        self._last = point
        self.fresh.add(self._open.marks[0].at)

    def expire(self, now: int) -> None:
        """Give up the blocks that ended longer ago than samples are kept."""
        ends = [*self._starts[1:], *(mark.at for mark in self._open.marks[:1])]
        self._drop(bisect_right(ends, now - self._plan.keep))

    def thin(self) -> None:
        """Give up the older half of the blocks."""
        self._drop((len(self._starts) + 1) // 2)

    def at(self, at: int, latest: Point, opened: Opened) -> Point:
        """Return the state at a time not before ``first_at``; ``latest`` is the newest scrape.

        Between two samples the target is taken to have grown evenly. A block that cannot be read is
        given up, and with it the samples that it held: if it was the first, the answer is of a later
        time.
        """
        while (first := self.first_at) is not None:
            at = max(at, first)
            if self._open.marks and at >= self._open.marks[0].at:
                return opened.view(self._open).at(at, latest)
            place = bisect_right(self._starts, at) - 1
            following = self._first_of(place + 1, latest, opened)
            if following is None:
                continue
            try:
                return opened.view(self._closed[place]).at(at, following)
            except ValueError:
                self._give_up(place, opened)
        return latest

    def _first_of(self, place: int, latest: Point, opened: Opened) -> Point | None:
        """Return the first sample of a block; None if it could not be read and was given up."""
        if place >= len(self._closed):
            return opened.view(self._open).point(0) if self._open.marks else latest
        try:
            return opened.view(self._closed[place]).point(0)
        except ValueError:
            self._give_up(place, opened)
            return None

    def _give_up(self, place: int, opened: Opened) -> None:
        self.dropped.add(self._starts[place])
        self.fresh.discard(self._starts[place])
        del self._starts[place], self._closed[place]
        opened.rot()

    def blocks(self, starts: set[int]) -> dict[int, bytes | Block]:
        """Return the blocks with these starts as they are now, for ``dump``."""
        found: dict[int, bytes | Block] = {
            start: self._closed[place]
            for start in starts
            if (place := bisect_left(self._starts, start)) < len(self._starts)
            and self._starts[place] == start
        }
        if self._open.marks and self._open.marks[0].at in starts:
            found[self._open.marks[0].at] = self._open.copy()
        return found

    def take(self, blocks: dict[int, bytes], opened: Opened) -> None:
        """Begin with what was written down; the newest block that can be read is gone on with."""
        for start, data in sorted(blocks.items()):
            self._starts.append(start)
            self._closed.append(data)
        self._reopen(opened)

    def cut(self, until: int, opened: Opened) -> None:
        """Give up the samples that are later than a time."""
        if self._open.marks and self._open.marks[0].at > until:
            self.dropped.add(self._open.marks[0].at)
            self.fresh.discard(self._open.marks[0].at)
            self._open, self._last = Block(), None
            later = bisect_right(self._starts, until)
            gone = set(self._starts[later:])
            self.dropped |= gone
            self.fresh -= gone
            del self._starts[later:], self._closed[later:]
            self._reopen(opened)
        marks = self._open.marks
        if marks and marks[-1].at > until:
            self._open = self._open.first(bisect_right(marks, until, key=_time))
            self._last = View(self._open).point(len(self._open.marks) - 1)
            self.fresh.add(marks[0].at)
        self._bin = self._last.mark.at // self._plan.spacing if self._last is not None else None
        self._flat = ""

    def _reopen(self, opened: Opened) -> None:
        """Go on with the newest block that can be read."""
        while self._closed:
            try:
                block = Block.load(self._closed[-1])
                self._last = View(block).point(len(block.marks) - 1)
            except ValueError:
                self._give_up(len(self._closed) - 1, opened)
                continue
            del self._starts[-1], self._closed[-1]
            self._open = block
            self._bin = self._last.mark.at // self._plan.spacing
            return

    def _append(self, point: Point, growth: bytes) -> None:
        if len(self._open.marks) >= self._plan.length:
            self._starts.append(self._open.marks[0].at)
            self._closed.append(self._open.dump())
            self.fresh.add(self._starts[-1])
            self._open = Block()
        if not self._open.marks:
            growth = pack(NOTHING, point.total)
        self._open.append(point.mark, growth)

    def _drop(self, number: int) -> None:
        gone = set(self._starts[:number])
        self.dropped |= gone
        self.fresh -= gone
        del self._starts[:number], self._closed[:number]

    def _kind(self, last: Mark, mark: Mark) -> str:
        """Name the kind of a stretch without growth; empty if it cannot be drawn on."""
        scrapes, samples = mark.scrapes - last.scrapes, mark.samples - last.samples
        if mark.at - last.at > 3 * self._plan.spacing or mark.load != last.load:
            return ""
        if samples == scrapes:
            return "up"
        return "" if samples else "down"


def dump(block: bytes | Block) -> bytes:
    """Write a block down, if it is not yet."""
    return block if isinstance(block, bytes) else block.dump()


def _time(mark: Mark) -> int:
    return mark.at


def _between(before: Point, after: Point, at: int) -> Point:
    one, other = before.mark, after.mark
    if at <= one.at or other.at <= one.at:
        return before
    share = min((at - one.at) / (other.at - one.at), 1.0)
    mark = Mark(
        at,
        one.scrapes + share * (other.scrapes - one.scrapes),
        one.samples + share * (other.samples - one.samples),
        one.load + share * (other.load - one.load),
    )
    if before.total is after.total:
        return Point(mark, before.total)
    return Point(mark, between(before.total, after.total, share))
