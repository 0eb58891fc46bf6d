"""When a crashed version may try again, and when it has crashed too often."""

from __future__ import annotations

from collections import deque

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 30.0
WINDOW_SECONDS = 120.0
CRASHES = 5
"""So many, for each replica, are a loop."""


class Crashes:
    """The crashes of one version within the last two minutes; times are monotonic seconds."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._replicas = 1
        self._times: deque[float] = deque()

    def add(self, version: int, at: float, *, replicas: int = 1, count: int = 1) -> None:
        """Note that ``count`` of a version's ``replicas`` crashed; other versions are forgotten."""
        self._replicas = replicas
        if version != self._version:
            self._version = version
            self._times.clear()
        while self._times and at - self._times[0] > WINDOW_SECONDS:
            self._times.popleft()
        self._times.extend([at] * count)

    def clear(self) -> None:
        """Forget them all."""
        self._times.clear()

    @property
    def loops(self) -> bool:
        """Whether they crashed too often to try again."""
        return len(self._times) >= CRASHES * self._replicas

    @property
    def retry_at(self) -> float:
        """When the next try is due; minus infinity without a crash."""
        if not self._times:
            return float("-inf")
        # Replicas that crash together are one reason to wait longer, not many.
        rounds = -(-len(self._times) // self._replicas)
        pause = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(rounds - 1, 16))
        return self._times[-1] + pause
