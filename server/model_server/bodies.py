"""Reads the bodies of requests, bounded in size and in time."""

from __future__ import annotations

import asyncio
from typing import Callable, List

from aiohttp import StreamReader, http_exceptions, web

from server.model_server.refusals import Refusal

IDLE_SECONDS = 15.0
"""Longest pause between two pieces of a body."""
SLOW_AFTER_SECONDS = 30.0
"""From here on a body has to keep up with ``BYTES_PER_SECOND`` on average."""
BYTES_PER_SECOND = 8192

Hold = Callable[[int], None]
"""Told of each piece's size in bytes; may raise to refuse it."""


async def read_body(request: web.BaseRequest, *, limit: int, hold: Hold) -> bytes:
    """Read a request's body of at most ``limit`` bytes.

    Raises:
        Refusal: the body is too large, comes too slowly or is broken; or what ``hold`` raises.
        ConnectionError: the client has gone.
    """
    if (request.content_length or 0) > limit:
        raise Refusal(413, "request_too_large", limit=limit)
    try:
        return await _read(request.content, limit, hold)
    except (web.RequestPayloadError, http_exceptions.HttpProcessingError):
        raise Refusal(400, "request_body_broken") from None


async def _read(content: StreamReader, limit: int, hold: Hold) -> bytes:
    if content.is_eof():
        body = content.read_nowait(-1)
        _count(len(body), len(body), limit, hold)
        return body
    loop = asyncio.get_running_loop()
    started = loop.time()
    pieces: List[bytes] = []
    size = 0
    while True:
        try:
            piece = await asyncio.wait_for(content.readany(), IDLE_SECONDS)
        except asyncio.TimeoutError:  # noqa: UP041 - two classes before Python 3.11
            raise Refusal(408, "request_too_slow") from None
        if not piece:
            return b"".join(pieces)
        size += len(piece)
        _count(len(piece), size, limit, hold)
        pieces.append(piece)
        taken = loop.time() - started
        if taken > SLOW_AFTER_SECONDS and size < taken * BYTES_PER_SECOND:
            raise Refusal(408, "request_too_slow")


def _count(piece: int, size: int, limit: int, hold: Hold) -> None:
    if size > limit:
        raise Refusal(413, "request_too_large", limit=limit)
    hold(piece)
