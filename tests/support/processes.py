"""What runs on a data folder: found in /proc by the folder's name, as an operator would."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process and its command line."""

    pid: int
    argv: tuple[str, ...]

    @property
    def is_replica(self) -> bool:
        """Whether it serves a model itself; the sandbox around it does not count."""
        return "serve" in self.argv and self.argv[0].endswith("/python")

    def kill(self) -> None:
        """End it as a crash would."""
        os.kill(self.pid, signal.SIGKILL)


def processes_of(data_dir: Path) -> list[Process]:
    """All living processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        # A zombie has no command line: it holds nothing and waits to be reaped.
        if f"{data_dir}/".encode() in line:
            argv = line.decode(errors="replace").rstrip("\0").split("\0")
            found.append(Process(int(entry.name), tuple(argv)))
    return found


def replicas_of(data_dir: Path) -> list[Process]:
    """The processes that serve models."""
    return [process for process in processes_of(data_dir) if process.is_replica]
