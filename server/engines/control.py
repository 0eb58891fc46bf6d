"""A replica's control socket as the service uses it: a question, a bounded answer, a deadline."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from server.engines.base import EngineError
from server.exchange import Exchange, UpstreamError

WORD_BYTES = 64 * 1024
"""Longest answer to a question, with its head; a replica's metrics are some 14 KiB."""


class ControlSocket:
    """Asks one replica, over a new connection each time: no answer is taken for another one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: set[Exchange] = set()
        self._is_closed = False

    async def ask(
        self, method: str, path: str, *, seconds: float, said: Any = None
    ) -> tuple[int, bytes]:
        """Return status and body of the answer.

        Raises:
            EngineError: there is none in so many seconds, or it is longer than ``WORD_BYTES``, or no HTTP.
        """
        if self._is_closed:
            raise EngineError("replica_silent", evidence="ended")
        try:
            async with asyncio.timeout(seconds):
                return await self._asked(_request(method, path, said), seconds)
        except (UpstreamError, OSError) as error:
            # TimeoutError is an OSError.
            evidence = str(error) if isinstance(error, UpstreamError) else type(error).__name__
            raise EngineError("replica_silent", evidence=evidence) from error

    async def _asked(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        _, exchange = await loop.create_unix_connection(
            lambda: Exchange(seconds, WORD_BYTES), self._path
        )
        self._open.add(exchange)
        try:
            exchange.send(request, b"")
            await exchange.answered()
            return exchange.status, await exchange.whole()
        finally:
            self._open.discard(exchange)
            exchange.close()

    def close(self) -> None:
        """Ask nothing more; who waits for an answer gets none."""
        self._is_closed = True
        for exchange in list(self._open):
            exchange.close()


def _request(method: str, path: str, said: Any) -> bytes:
    body = b"" if said is None else json.dumps(said).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: replica\r\nConnection: close\r\n"
    if said is not None or method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body
