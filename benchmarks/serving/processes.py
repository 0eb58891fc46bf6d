"""Figures of a process and all its descendants."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return a process and its descendants, as they are at the moment."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
    return found


def command_of(pid: int) -> str:
    """Return a process' command line; nothing if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a tree, of children that ended and were waited for too."""
    ticks = 0
    for member in tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def memory_mib(pid: int) -> tuple[float, float, int]:
    """Return the RSS and the PSS of a tree in MiB, and how many processes it has."""
    resident = shared_out = 0.0
    processes = 0
    for member in tree(pid):
        with suppress(OSError):
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
            resident += _kilobytes("Rss", text) / 1024
            shared_out += _kilobytes("Pss", text) / 1024
            processes += 1
    return resident, shared_out, processes


def _kilobytes(field: str, text: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0
