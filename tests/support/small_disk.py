"""A really small disk: a tmpfs that can be filled to its last byte."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

from tests.support.needs import lacks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class SmallDisk:
    """A file system of its own below ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "of somebody else"

    @property
    def free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Let another program take everything that is free, save for ``leave`` bytes."""
        descriptor = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            with contextlib.suppress(OSError):
                while self.free > leave:
                    os.write(descriptor, bytes(min(65536, self.free - leave)))
        finally:
            os.close(descriptor)
        assert self.free <= leave

    def clear(self) -> None:
        """Let the other program go."""
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount a small disk at ``path``; ends the test where that is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    command = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={megabytes}m,nr_inodes=5000",
        "tmpfs",
        str(path),
    ]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        lacks("needs to mount a tmpfs, as root")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
