"""Where model environments lie on the disk: what is whole, what is idle, what is swept."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

logger = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
"""Marker of a whole environment, written last. The folder's own time is that of its last use."""

# Between the look that found one whole and the first file that a model opens.
_JUST_USED_SECONDS = 600.0


class Folders:
    """The folder of each environment below ``root``, by name, and those around them.

    ``temporary`` is swept at every start and now and then, ``guards`` has a lock file for each environment.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.temporary = root / ".tmp"
        self.guards = root / ".guards"
        self.locks = root / ".locks"

    def open(self) -> None:
        """Make the folders and sweep what a killed service left behind.

        Raises:
            OSError: they cannot be made.
        """
        for folder in (self.root, self.temporary, self.guards, self.locks):
            folder.mkdir(parents=True, exist_ok=True)
        self.sweep(0.0)

    def sweep(self, kept_seconds: float) -> None:
        """Remove what a killed service left behind, or a disk that failed.

        What is temporary and younger than ``kept_seconds`` may be in use.
        """
        for leftover in self.temporary.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - leftover.lstat().st_mtime >= kept_seconds:
                    remove(leftover)
        for folder in self.root.iterdir():
            if not folder.name.startswith(".") and not (folder / COMPLETE).is_file():
                self._remove_half_built(folder)

    def _remove_half_built(self, folder: Path) -> None:
        """Remove a half-built environment, unless somebody is building it right now."""
        with (self.guards / folder.name).open("a") as file:
            if try_lock(file.fileno()) and not (folder / COMPLETE).is_file():
                logger.info("removing the half-built environment %s", folder.name)
                remove(folder)

    def idle(self, in_use: Collection[str], kept_seconds: float) -> list[str]:
        """Return the environments that were last used so long ago, the longest first.

        Those in use are noted as used now.
        """
        found: list[tuple[float, str]] = []
        for folder in self.root.iterdir():
            if folder.name.startswith(".") or not (folder / COMPLETE).is_file():
                continue
            if folder.name in in_use:
                touch(folder)
                continue
            last_used = folder.stat().st_mtime
            if time.time() - last_used > max(kept_seconds, _JUST_USED_SECONDS):
                found.append((last_used, folder.name))
        return [name for _, name in sorted(found)]

    def take_away(self, name: str, is_wanted: Callable[[str], bool]) -> Path | None:
        """Move an environment out of everybody's sight; None if somebody wants it by now.

        To be called where nothing else can run between the look and the move: whoever comes later
        finds nothing and builds it again.
        """
        doomed = self.temporary / f"{name}.{secrets.token_hex(4)}"
        with (self.guards / name).open("a") as guard:
            if is_wanted(name) or not try_lock(guard.fileno()):
                return None
            (self.root / name).rename(doomed)
        return doomed


def touch(folder: Path) -> None:
    """Note that an environment is used now."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def try_lock(descriptor: int) -> bool:
    """Take a file's lock unless another process, or another part of this one, has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder with everything in it, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        # The marker goes first: a removal that is cut short must not look like an environment.
        (path / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
