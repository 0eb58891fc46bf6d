"""Refuses what would run out of open files half-way."""

from __future__ import annotations

import os

# The pipes of a process at both ends, and what the event loop opens beside them.
_FOR_A_PROCESS = 16


def refuse_without_descriptors() -> None:
    """Raise OSError (EMFILE) unless a process can be started with the files that it needs.

    uvloop loses the pipes of a start that fails for want of open files: tried again and again, it
    would never come out of it.
    """
    taken: list[int] = []
    try:
        for _ in range(_FOR_A_PROCESS):
            taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401
    finally:
        for descriptor in taken:
            os.close(descriptor)
