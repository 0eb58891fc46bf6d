"""How long a connection may take for what it does; times in seconds of ``time.perf_counter``."""

from __future__ import annotations

HEADER_SECONDS = 10.0
"""From the first byte of a request's head to its last."""
KEEPALIVE_SECONDS = 40.0
"""How long a silent connection is kept; gateways have to let go sooner."""
BODY_IDLE_SECONDS = 15.0
"""Longest pause between two pieces of a body."""
BODY_SLOW_AFTER_SECONDS = 30.0
"""From here on a body has to keep up with ``BYTES_PER_SECOND`` on average."""
BYTES_PER_SECOND = 8192
WRITE_SECONDS = 15.0
"""A client that reads less than ``BYTES_PER_SECOND`` of an answer for so long is given up."""
LINGER_SECONDS = 5.0
"""How long a refused client may go on sending before it is cut off, so that it reads why."""


def is_body_late(now: float, began: float, last: float, size: int) -> bool:
    """Whether a body of which ``size`` bytes came, the last ones at ``last``, comes too slowly."""
    taken = now - began
    is_slow = taken > BODY_SLOW_AFTER_SECONDS and size < taken * BYTES_PER_SECOND
    return is_slow or now - last > BODY_IDLE_SECONDS


def is_reader_gone(now: float, since: float, before: int, left: int) -> bool:
    """Whether of the ``before`` bytes that waited ``since`` then too few were read."""
    return left > before - BYTES_PER_SECOND * (now - since)
