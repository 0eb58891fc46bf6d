"""A child process that is none, for replicas of which only the control socket counts."""

from __future__ import annotations

import asyncio


class Silent:
    """Says no word, and ends when it is told to."""

    log = ()

    def __init__(self) -> None:
        self._end = asyncio.Event()

    async def line(self) -> None:
        await self._end.wait()

    async def wait(self) -> int:
        return 0

    async def kill(self) -> None:
        self._end.set()
