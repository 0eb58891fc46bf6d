"""Which processes belong to one that we started: the one on the GPU may be a grandchild."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def family(pids: Iterable[int], *, proc: Path = Path("/proc")) -> frozenset[int]:
    """Return ``pids`` and all their descendants; processes that end meanwhile are left out."""
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(_children(proc / str(pid) / "task"))
    return frozenset(found)


def _children(tasks: Path) -> list[int]:
    children: list[int] = []
    try:
        for task in tasks.iterdir():
            children.extend(int(pid) for pid in (task / "children").read_text().split())
    except (OSError, ValueError):
        return children
    return children
