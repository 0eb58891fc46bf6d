"""Places that owners take in turns, so that who asks for much keeps nobody else waiting for long."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turns:
    """So many places at once; one that gets free goes to the owner that waited longest for a turn."""

    def __init__(self, places: int) -> None:
        self._free = places
        # By owner, in the order of their turns; an owner that got a place goes to the end.
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def place(self, owner: str) -> AsyncIterator[None]:
        """Hold a place for a while, once it is this owner's turn."""
        if self._free:
            self._free -= 1
        else:
            await self._turn(owner)
        try:
            yield
        finally:
            self._pass_on()

    async def _turn(self, owner: str) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, []).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                # It was given the place in this very moment.
                self._pass_on()
            else:
                self._leave(owner, mine)
            raise

    def _leave(self, owner: str, mine: asyncio.Future[None]) -> None:
        waiting = self._waiting[owner]
        waiting.remove(mine)
        if not waiting:
            del self._waiting[owner]

    def _pass_on(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        owner = next(iter(self._waiting))
        waiting = self._waiting.pop(owner)
        waiting.pop(0).set_result(None)
        if waiting:
            self._waiting[owner] = waiting
