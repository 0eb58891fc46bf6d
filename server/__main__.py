"""``python -m server`` starts the service."""

from __future__ import annotations

import signal
import sys


def run() -> int:
    """Start the service; being asked to end while it is still being loaded is no failure."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    from server.cli import main  # noqa: PLC0415 - takes most of the time until it starts

    return main()


if __name__ == "__main__":
    sys.exit(run())
