"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the cores that it may run on, bounded by the quotas of its cgroups; at least one."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _folders(cgroups, own):
        cores = min(cores, _quota(folder))
    return max(1, math.ceil(cores))


def _folders(cgroups: Path, own: Path) -> Iterator[Path]:
    """Yield the cgroups that this process is in, the mounts' roots last."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _number, names, path = line.split(":", 2)
        if names and "cpu" not in names.split(","):
            continue
        base = cgroups / names
        folder = base / path.lstrip("/")
        yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(base)))


def _quota(folder: Path) -> float:
    """Return how many cores a cgroup may use at once, of version 2 or 1."""
    try:
        if (unified := folder / "cpu.max").exists():
            quota, period = unified.read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        return math.inf if quota in {"max", "-1"} else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
