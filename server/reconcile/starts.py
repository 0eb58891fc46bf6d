"""Bounds how many replicas start, or are probed, at a time: on few cores they slow each other down."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONGEST_SECONDS = 3.0


class Starts:
    """Places for replicas that start.

    A start that hangs must not hold up those of others: it loses its place after a while and
    goes on without one.
    """

    def __init__(self, at_once: int, *, seconds: float = LONGEST_SECONDS) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._seconds = seconds

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and hold it while the start goes on, but not for too long."""
        await self._places.acquire()
        late = asyncio.get_running_loop().call_later(self._seconds, self._places.release)
        try:
            yield
        finally:
            if late.when() > asyncio.get_running_loop().time():
                late.cancel()
                self._places.release()
