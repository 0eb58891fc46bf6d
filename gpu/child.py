"""``python -m gpu.child PARENT_PID``: reads NVML in a process of its own, which may hang alone.

Every line on stdin asks for one reading; every reading is one line of JSON on stdout. The process
ends when stdin closes, and dies with its parent even while a call hangs in the driver.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

from gpu.devices import to_json
from gpu.nvml import NvmlReader

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends; exit if it already did."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def main() -> None:
    """Answer until stdin closes."""
    die_with_parent(int(sys.argv[1]))
    # Ctrl-C reaches the whole terminal group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a driver prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reader = NvmlReader()
    try:
        while sys.stdin.buffer.readline():
            answers.write(json.dumps(to_json(reader.read())) + "\n")
            answers.flush()
    except BrokenPipeError:
        os._exit(0)  # nobody listens any more, and closing the stream would fail again


if __name__ == "__main__":
    main()
