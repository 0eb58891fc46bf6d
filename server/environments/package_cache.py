"""The installer's cache of packages: bounded by what of it no model environment shares."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name
from uv import find_uv_bin

from server.environments.uv import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = logging.getLogger(__name__)

# It waits for installers that are at work; it is tried again later.
_SECONDS = 120.0
_DIST_INFO = ".dist-info"
# It refuses to be started inside of its own cache.
_ELSEWHERE = Path("/")


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of the cache that no environment shares, by package."""

    unshared: dict[str, int] = field(default_factory=dict)

    def surplus(self, limit_bytes: int) -> list[str]:
        """Return which packages to let go, the largest first, to come down to a limit."""
        over = sum(self.unshared.values()) - limit_bytes
        chosen: list[str] = []
        for name, size in sorted(self.unshared.items(), key=lambda item: -item[1]):
            if over <= 0:
                break
            chosen.append(name)
            over -= size
        return chosen


class PackageCache:
    """uv's cache in ``folder``. Environments share its files by hard links and do not need it."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ

    async def measure(self) -> Kept:
        """Add up what it holds."""
        return await asyncio.to_thread(measured, self._folder)

    async def bound(self, limit_bytes: int) -> None:
        """Let go of what is dangling, and of packages that no environment uses beyond a limit."""
        await self._clean("prune")
        if surplus := (await self.measure()).surplus(limit_bytes):
            logger.info("removing packages that no model environment uses: %s", ", ".join(surplus))
            await self._clean("clean", *surplus)

    async def _clean(self, command: str, *packages: str) -> None:
        argv = [find_uv_bin(), "cache", command, "--no-config", "--cache-dir", str(self._folder)]
        try:
            async with asyncio.timeout(_SECONDS):
                done = await run([*argv, *packages], folder=_ELSEWHERE, environ=self._environ)
        except TimeoutError:
            logger.warning("the package cache is in use and was not cleaned")
            return
        if done.exit_code:
            logger.warning("the package cache cannot be cleaned: %s", done.output.strip())


def measured(folder: Path) -> Kept:
    """Add up a cache. A package counts as shared as soon as one of its files has a second link."""
    unshared: dict[str, int] = {}
    for archive in folder.glob("archive-v*/*"):
        files = list(_files(archive))
        if all(each.st_nlink == 1 for each in files):
            size = sum(each.st_size for each in files)
            for name in _packages(archive):
                unshared[name] = unshared.get(name, 0) + size
    return Kept(unshared)


def stored_bytes(folder: Path) -> int:
    """Add up all files below a folder; one with several names counts once."""
    inodes = {(each.st_dev, each.st_ino): each.st_size for each in _files(folder)}
    return sum(inodes.values())


def _packages(archive: Path) -> Iterator[str]:
    for entry in archive.glob(f"*{_DIST_INFO}"):
        yield canonicalize_name(entry.name.removesuffix(_DIST_INFO).rpartition("-")[0])


def _files(folder: Path) -> Iterator[os.stat_result]:
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))  # noqa: PTH118 - of thousands of files
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode):
                yield found
