"""Unprivileged users for model processes, one each, where the service is root."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_COUNT_SECONDS = 5.0


class Users:
    """Numbers of users that nothing else on this machine has; the longest unused one is next."""

    def __init__(self, first: int, last: int) -> None:
        self._free = deque(range(first, last + 1))

    def take(self) -> int:
        """Return a user that no process of ours has.

        Raises:
            OSError: all are in use.
        """
        if not self._free:
            raise OSError(errno.EAGAIN, "all users for model processes are in use")
        return self._free.popleft()

    def give_back(self, user: int) -> None:
        """Take back the user of a process that has ended."""
        self._free.append(user)


def hand_over(folders: Iterable[Path], user: int) -> None:
    """Give folders to a user, and to no other."""
    for folder in folders:
        folder.chmod(0o700)
        os.chown(folder, user, user)


def take_back(folders: Iterable[Path]) -> None:
    """Own again what was handed over, with all that was put into it; what is gone is skipped."""
    user, group = os.geteuid(), os.getegid()
    for folder in folders:
        for place, names, files in os.walk(folder):
            for name in (".", *names, *files):
                with contextlib.suppress(FileNotFoundError):
                    os.chown(Path(place, name), user, group, follow_symlinks=False)
        if folder.is_dir():
            folder.chmod(0o755)


# What model processes read, by a name that they are told; the first ones may be listed.
_PUBLIC, _PASSED = (
    ("environments", "trees"),
    ("blobs", "interpreter", "models", "replicas", "specs"),
)


def open_the_way(data_dir: Path) -> None:
    """Let other users pass the data folder on the way to what is theirs, and read nothing else."""
    for entry in data_dir.iterdir():
        if entry.is_symlink():
            continue
        if entry.name in _PUBLIC:
            entry.chmod(0o755)
        elif entry.name in _PASSED:
            entry.chmod(0o711)
        else:
            entry.chmod(0o700 if entry.is_dir() else 0o600)
    incoming = data_dir / "blobs" / "incoming"
    if incoming.is_dir():
        incoming.chmod(0o700)
    data_dir.chmod(0o711)


class ThreadCount:
    """How many threads the service's own user has: the kernel's limit counts them all together."""

    def __init__(self) -> None:
        self._counted = 0
        self._counted_at = -_COUNT_SECONDS

    def __call__(self) -> int:
        """Return the number, counted anew every few seconds; reads files."""
        if time.monotonic() - self._counted_at >= _COUNT_SECONDS:
            self._counted, self._counted_at = _count_threads(), time.monotonic()
        return self._counted


def _count_threads() -> int:
    user, count = os.geteuid(), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == user:
                    # A folder has a link for itself, one from above, and one for each below.
                    count += (entry / "task").stat().st_nlink - 2
            except OSError:
                continue
    return count
