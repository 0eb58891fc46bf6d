"""What is done beside all requests: small duties again and again, and collecting what nobody uses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from server.environments.build import Environments
    from server.pipeline.usage import Usage
    from server.settings import Settings

logger = logging.getLogger(__name__)

ROUND_SECONDS = 30.0
COLLECT_SECONDS = 3600.0
# While there is no room, and nothing could be collected the last time.
PRESSED_SECONDS = 600.0


class Housekeeping:
    """Does each duty every few seconds; one that fails is tried again and hinders no other."""

    def __init__(
        self, duties: Mapping[str, Callable[[], Awaitable[object]]], seconds: float = ROUND_SECONDS
    ) -> None:
        self._duties = duties
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """End, in the middle of a duty if need be."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        while True:
            await self.round()
            await asyncio.sleep(self._seconds)

    async def round(self) -> None:
        """Do every duty once."""
        for name, duty in self._duties.items():
            try:
                await duty()
            except Exception:
                logger.exception("%s failed; it is tried again", name)


class Collector:
    """Gives the disk back what model environments and packages take that nobody uses any more.

    ``in_use`` returns the names of the environments in use at that moment; ``measured`` is told
    how many bytes all of them take.
    """

    def __init__(
        self,
        settings: Settings,
        usage: Usage,
        environments: Environments,
        in_use: Callable[[], Collection[str]],
        measured: Callable[[int], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._usage = usage
        self._environments = environments
        self._in_use = in_use
        self._measured = measured
        self._clock = clock
        # The first time comes soon after the start, when that is over.
        self._due = clock() + PRESSED_SECONDS
        self._pressed_due = clock()

    async def attend(self) -> None:
        """Collect when it is time to, or when there is no room left."""
        now = self._clock()
        disk = await self._usage.disk()
        is_pressed = disk.room_bytes(self._settings) <= 0
        if now < self._due and not (is_pressed and now >= self._pressed_due):
            return
        self._due = now + COLLECT_SECONDS
        self._pressed_due = now + PRESSED_SECONDS
        await self.collect(is_pressed=is_pressed)

    async def collect(self, *, is_pressed: bool) -> None:
        """Remove what was not used for long; without room everything that is not in use."""
        kept_seconds = 0.0 if is_pressed else self._settings.keep_environments_seconds
        await self._environments.collect(self._in_use, kept_seconds)
        if self._environments.is_building:
            return
        limit = 0 if is_pressed else self._settings.package_cache_bytes
        await self._environments.packages.bound(limit)
        self._measured(await self._environments.stored_bytes())
