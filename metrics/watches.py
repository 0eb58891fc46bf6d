"""When somebody looked: stretches of time without a gap, and how much of a window they cover."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from metrics.semantics import Window

Stretch = tuple[int, int]
"""Times of the first and of the last look, in milliseconds since 1970."""

_MOST = 200


class Watch:
    """Looks at one target; ``gap`` is the longest pause between two of them, in milliseconds."""

    __slots__ = ("_stretches", "gap")

    def __init__(self, gap: int, stretches: Sequence[Stretch] = ()) -> None:
        self.gap = gap
        self._stretches = list(stretches)

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """The stretches, the oldest first."""
        return tuple(self._stretches)

    def look(self, at: int) -> None:
        """Note a look that is later than every other."""
        if self._stretches and at - self._stretches[-1][1] <= self.gap:
            self._stretches[-1] = (self._stretches[-1][0], at)
        else:
            # Of what was looked at again and again for a moment only the newest is remembered.
            del self._stretches[: max(len(self._stretches) + 1 - _MOST, 0)]
            self._stretches.append((at, at))

    def forget(self, until: int) -> None:
        """Forget what was seen up to a time."""
        self._stretches = since(self._stretches, until)


def since(stretches: Iterable[Stretch], time: int) -> list[Stretch]:
    """Return what of the stretches is not before a time."""
    return [(max(first, time), last) for first, last in stretches if last > time]


def covered(stretches: Iterable[Stretch], window: Window) -> int:
    """Return how many milliseconds of a window lie in at least one of the stretches."""
    total, until = 0, window.start
    for first, last in sorted(stretches):
        begin, end = max(first, until), min(last, window.end)
        if end > begin:
            total += end - begin
            until = end
    return total
