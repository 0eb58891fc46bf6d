"""Ends what a killed service left behind, where it did not die with it."""

from __future__ import annotations

import logging
import os
import signal
from itertools import pairwise
from pathlib import Path

logger = logging.getLogger(__name__)

_FOLDERS = ("replicas", "specs")


def end_orphans(data_dir: Path) -> int:
    """Kill the model processes of a data folder and return how many there were.

    To be called by the folder's new owner before it starts anything. Children die with their
    service, save for a sandbox that was just being set up when the service was killed: it waits
    for ever, with the deployment's socket in its hands.
    """
    marks = tuple(f"{data_dir.absolute()}/{folder}/".encode() for folder in _FOLDERS)
    ended = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = entry.read_bytes().split(b"\0")
            if any(name == b"--spec" and path.startswith(marks) for name, path in pairwise(argv)):
                os.kill(int(entry.parent.name), signal.SIGKILL)
                ended += 1
        except OSError:
            # It ended by itself meanwhile, or is none of ours.
            continue
    if ended:
        logger.warning("ended %d processes that a killed service had left behind", ended)
    return ended
