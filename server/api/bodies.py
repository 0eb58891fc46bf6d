"""Reads request bodies at a pace that the caller must keep."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from server.api.errors import SlowRequestError
from server.errors import InvalidRequestError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_EXPECTS = web.RequestKey("expects_continue", bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How slowly a body may come: seconds, and bytes a second once ``grace_seconds`` are over.

    Only the time spent waiting for the caller counts, never our own disk.
    """

    idle_seconds: float = 15.0
    grace_seconds: float = 30.0
    bytes_per_second: float = 8192.0
    whole_seconds: float = 3600.0


async def defer_continue(request: web.Request) -> None:
    """Send ``100 Continue`` only when the body is wanted: the route's ``expect_handler``.

    So a request that is refused by its headers never sends its 500 MB.
    """
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed
    request[_EXPECTS] = request.version >= (1, 1)


async def read_body(request: web.Request, max_bytes: int, pace: Pace | None = None) -> bytes:
    """Return the whole body. Raises what :class:`PacedBody` raises, and ``TooLargeError``."""
    content = request.content
    if (
        content.is_eof()
        and content.exception() is None
        and (request.content_length or 0) <= max_bytes
    ):
        # A small body came with its head: nothing to wait for, and no pace to keep.
        return content.read_nowait()
    return b"".join([piece async for piece in body_pieces(request, max_bytes, pace)])


async def body_pieces(
    request: web.Request, max_bytes: int, pace: Pace | None = None
) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises what :class:`PacedBody` raises, and ``TooLargeError``."""
    if (request.content_length or 0) > max_bytes:
        raise TooLargeError("body_too_large", limit=max_bytes)
    body = PacedBody(request, pace)
    while piece := await body.receive():
        if body.received_bytes > max_bytes:
            raise TooLargeError("body_too_large", limit=max_bytes)
        yield piece


class PacedBody:
    """The bytes of one request's body.

    Every read raises ``SlowRequestError`` (``body_too_slow``) when the caller falls behind, and
    ``InvalidRequestError`` (``body_malformed``) when the body breaks HTTP.
    """

    def __init__(self, request: web.Request, pace: Pace | None, buffer_bytes: int = 0) -> None:
        self.received_bytes = 0
        self._request = request
        self._pace = pace or Pace()
        self._waited = 0.0
        self._waiting_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        if buffer_bytes:
            # Flow control of this one body; the default of all connections stays small.
            request.content.set_read_chunk_size(buffer_bytes)

    @property
    def waited_seconds(self) -> float:
        """Time that the caller was waited for so far."""
        since = self._waiting_since
        return self._waited + (0.0 if since is None else self._loop.time() - since)

    async def receive(self) -> bytes:
        """Return what has arrived, or nothing at the end."""
        await self._send_continue()
        self._waiting_since = self._loop.time()
        try:
            async with asyncio.timeout(self._pace.idle_seconds):
                data = await self._request.content.readany()
        except TimeoutError:
            raise SlowRequestError("body_too_slow") from None
        except (RequestPayloadError, HttpProcessingError):
            raise InvalidRequestError("body_malformed") from None
        finally:
            self._waited, self._waiting_since = self.waited_seconds, None
        self.received_bytes += len(data)
        if data:
            self._check_pace()
        return data

    async def _send_continue(self) -> None:
        if self._request.get(_EXPECTS):
            self._request[_EXPECTS] = False
            writer = self._request.writer
            await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # The answer proper has not begun.
            writer.output_size = 0

    def _check_pace(self) -> None:
        pace = self._pace
        is_slow = (
            self._waited > pace.grace_seconds
            and self.received_bytes < self._waited * pace.bytes_per_second
        )
        if is_slow or self._loop.time() - self._started > pace.whole_seconds:
            raise SlowRequestError("body_too_slow")
