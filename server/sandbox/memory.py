"""Watches the memory of a process that no limit of the kernel can bound."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.sandbox.child import Child

logger = logging.getLogger(__name__)

_SECONDS = 0.25


async def end_over(child: Child, limit_bytes: int) -> None:
    """Kill a child once it holds more than ``limit_bytes``; returns when it has ended.

    CUDA reserves far more addresses than there is memory, so what is resident has to be counted.
    """
    while child.exit_code is None:
        if await asyncio.to_thread(resident_bytes, child.pid) > limit_bytes:
            logger.warning("child %d took more than %d bytes of memory", child.pid, limit_bytes)
            await child.kill()
            return
        await asyncio.sleep(_SECONDS)


def resident_bytes(pid: int) -> int:
    """Return the memory of a process and of all below it; one that is gone has none."""
    total = 0
    try:
        resident = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        total += int(resident) * os.sysconf("SC_PAGE_SIZE")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except (OSError, IndexError):
        return total
    return total + sum(resident_bytes(int(child)) for child in children)
