"""How the replicas of one deployment know of each other: a few numbers in shared memory.

The kernel gives a connection to whichever replica wakes first, and no number of replicas makes
that fair. So each one publishes how many connections it holds and leaves the next one to those
that hold fewer. What stands here is advice: the worst that a replica can do by lying is to be
given too many connections of its own deployment, or too few.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Callable, List

_FIELDS = 3
_STAMP, _CONNECTIONS, _ACCEPTS = range(_FIELDS)
SLOT_BYTES = 8 * _FIELDS
"""Every field is one aligned 64-bit number; as many slots as the memory has room for."""
FRESH_SECONDS = 2.0
"""A replica that published nothing for so long is hung, or gone."""


class Share:
    """One replica's slot, and its view of the others; belongs to one thread.

    Fields are written at once, so that readers need no lock.
    """

    def __init__(
        self, descriptor: int, slot: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Map the memory behind a descriptor.

        Raises:
            OSError: the descriptor cannot be mapped.
            ValueError: it has no room for ``slot``.
        """
        size = os.fstat(descriptor).st_size
        if not 0 <= slot < size // SLOT_BYTES:
            raise ValueError(f"slot {slot} is out of range")
        self._numbers = memoryview(mmap.mmap(descriptor, size)).cast("q")
        self._slot = slot
        self._clock = clock

    def publish(self, connections: int, accepts: bool) -> None:
        """Tell the others how many connections we hold, and whether we accept more."""
        place = self._slot * _FIELDS
        numbers = self._numbers
        numbers[place + _CONNECTIONS] = connections
        numbers[place + _ACCEPTS] = accepts
        numbers[place + _STAMP] = self._now_ms()

    def excess(self) -> int:
        """Say how many connections we hold more than the replica that holds the fewest."""
        others = self._others()
        return max(0, self._ours - min(others)) if others else 0

    def surplus(self) -> int:
        """Say with how many connections we have to part for all to hold equally many."""
        others = self._others()
        fair = -(-(self._ours + sum(others)) // (1 + len(others)))
        return max(0, self._ours - fair)

    @property
    def _ours(self) -> int:
        return int(self._numbers[self._slot * _FIELDS + _CONNECTIONS])

    def _others(self) -> List[int]:
        """List what the others hold that accept and show signs of life."""
        numbers = self._numbers
        oldest = self._now_ms() - int(FRESH_SECONDS * 1000)
        return [
            int(numbers[place + _CONNECTIONS])
            for place in range(0, len(numbers), _FIELDS)
            if numbers[place + _ACCEPTS]
            and numbers[place + _STAMP] >= oldest
            and place != self._slot * _FIELDS
        ]

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
