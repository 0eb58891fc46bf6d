"""The embedded monitor's history on the disk, so that a restart keeps the service levels."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from metrics.persistence import load

if TYPE_CHECKING:
    from pathlib import Path

    from metrics.embedded import EmbeddedMonitor

logger = logging.getLogger(__name__)


def load_history(monitor: EmbeddedMonitor, path: Path) -> None:
    """Let the monitor go on from what was kept; nothing kept is a fresh start."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    logger.info("took up the history of %d targets", load(monitor, data))


def keep_history(data: bytes, path: Path) -> None:
    """Replace what was kept; a full disk keeps the older state and is only logged."""
    made = path.with_suffix(".tmp")
    try:
        made.write_bytes(data)
        made.replace(path)
    except OSError as error:
        logger.warning("the history cannot be kept: %s", error.strerror)
