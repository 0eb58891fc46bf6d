"""Time that does not jump: the wall clock's, less the steps that it was put while we looked."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

STEP_SECONDS = 0.5
"""By so much a clock is put, and does not merely go a little too fast or slow."""

# After the clock was put back, Prometheus takes no samples until it is as late as it was before: that
# long nobody believes it, but for a clock that was years ahead not for years.
_LONGEST_DOUBT = 86_400.0
_ATOMIC_SECONDS = 0.05
_TRIES = 5


def _elapsed() -> float:
    # Unlike the monotonic one it goes on while the machine sleeps.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyClock:
    """Tells steady times, in seconds since 1970; ``wall`` may jump, ``elapsed`` never does.

    A step is noticed by ``now``, so that has to be asked every few seconds.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = _elapsed,
    ) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._seen = self._look()
        self._doubt_until = self._seen[1]
        self.skew = 0.0
        """By how many seconds steady times are ahead of the wall clock's."""

    @property
    def was_put_back(self) -> bool:
        """Whether the wall clock shows times that it has shown before."""
        return self._elapsed() < self._doubt_until

    def now(self) -> float:
        """Return the steady time."""
        wall, elapsed = self._look()
        step = (wall - self._seen[0]) - (elapsed - self._seen[1])
        if abs(step) > STEP_SECONDS:
            log.warning("the clock was put by %+.1f s; the figures go on as if it had not", step)
            self.skew -= step
            behind = max(self._doubt_until - elapsed, 0.0) - step
            self._doubt_until = elapsed + min(max(behind, 0.0), _LONGEST_DOUBT)
        self._seen = wall, elapsed
        return wall + self.skew

    def _look(self) -> tuple[float, float]:
        """Read both clocks at one moment: we may be put to sleep between the two."""
        tries = 0
        while True:
            tries += 1
            before = self._elapsed()
            wall = self._wall()
            elapsed = self._elapsed()
            if elapsed - before < _ATOMIC_SECONDS or tries == _TRIES:
                return wall, elapsed
