"""A lean client that sends at an even pace, and its own count of what it saw."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from bisect import bisect_left
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


@dataclass
class Seen:
    """What one connection saw: when each answer was there, and how long it took, in seconds.

    Its thread appends, and others may look: ``at``, times of ``time.time``, is appended to last.
    """

    at: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    def within(self, start: float, end: float) -> list[float]:
        """Return how long those took that were answered in a window."""
        number = len(self.at)
        first = bisect_left(self.at, start, 0, number)
        return self.took[first : bisect_left(self.at, end, 0, number)]


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that so many are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@asynccontextmanager
async def paced(
    url: str, body: bytes, *, per_second: float, connections: int = 2
) -> AsyncIterator[list[Seen]]:
    """Send ``body`` over kept connections, each in its own thread, while the block lasts.

    Plain blocking sockets: to the server's time they add little more than their own wake-up.
    """
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}"
    request = head.encode() + b"\r\n\r\n" + body
    ended = threading.Event()
    seen = [Seen() for _ in range(connections)]
    pause = connections / per_second
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, mine in enumerate(seen):
            first = began + number / per_second
            sending = (str(parts.hostname), parts.port or 80, request, first, pause, mine, ended)
            group.create_task(asyncio.to_thread(_send, *sending))
        try:
            yield seen
        finally:
            ended.set()


def _send(
    host: str,
    port: int,
    request: bytes,
    due: float,
    pause: float,
    seen: Seen,
    ended: threading.Event,
) -> None:
    with socket.create_connection((host, port), timeout=30) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not ended.wait(max(0.0, due - time.perf_counter())):
            sent = time.perf_counter()
            sock.sendall(request)
            status = _status(sock)
            seen.took.append(time.perf_counter() - sent)
            seen.at.append(time.time())
            seen.statuses.add(status)
            # One that is late does not catch up: that would be another load.
            due = max(due + pause, time.perf_counter())


def _status(sock: socket.socket) -> int:
    """Read one answer to its last byte."""
    data = sock.recv(65536)
    while (place := data.find(b"\r\n\r\n")) < 0:
        data += _more(sock)
    length = int(data[:place].partition(b"Content-Length: ")[2].split(b"\r\n")[0])
    while len(data) < place + 4 + length:
        data += _more(sock)
    return int(data[9:12])


def _more(sock: socket.socket) -> bytes:
    piece = sock.recv(65536)
    if not piece:
        raise ConnectionError("the connection was closed within an answer")
    return piece
