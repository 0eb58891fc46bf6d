"""A file that only takes room: given up where a full disk must not stop what frees it."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from typing import TYPE_CHECKING

from server.errors import StorageFullError, is_full

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

logger = logging.getLogger(__name__)

MOST_BYTES = 16 * 1024**2
# Of a small disk it takes less, and it is filled again only once there is ample room.
_SHARE = 50
_AMPLE = 4


class Reserve:
    """Room for the database to say that something was deleted, stopped or has failed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def fill(self) -> bool:
        """Take the room, if there is plenty of it; return whether it is held."""
        return await asyncio.to_thread(self._fill)

    def _fill(self) -> bool:
        disk = shutil.disk_usage(self._path.parent)
        size = min(MOST_BYTES, disk.total // _SHARE)
        if self._path.exists() and self._path.stat().st_size >= size:
            return True
        if disk.free < _AMPLE * size:
            return False
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            if not is_full(error):
                raise
            return False
        finally:
            os.close(descriptor)
        return True

    async def release(self) -> bool:
        """Give the room back; return whether there was any."""
        return await asyncio.to_thread(self._release)

    def _release(self) -> bool:
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        logger.warning("the disk is full: the reserve of the data folder is given up")
        return True


async def surely(reserve: Reserve | None, work: Callable[[], Awaitable[None]]) -> None:
    """Do a write that frees room or tells of an end; a full disk costs the reserve.

    Raises:
        StorageFullError: even that is used up.
    """
    try:
        await work()
    except StorageFullError:
        if reserve is None or not await reserve.release():
            raise
        await work()
