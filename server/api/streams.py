"""Answers that go on for as long as their caller reads: how many there may be, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from server.api.callers import token_of
from server.api.middleware import ANSWERED_IN
from server.errors import PersephoneError
from server.pipeline.quotas import check_streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.settings import Settings

logger = logging.getLogger(__name__)

# Within this time it is noticed that a caller has gone.
_LOOK_SECONDS = 1.0
_HEARTBEAT_SECONDS = 15.0


class Source(Protocol):
    """What a stream is made of. A piece is asked for only once the one before was taken."""

    heartbeat: bytes
    """What is sent where there is nothing to say for long; may be empty."""
    longest_seconds: float
    """After this it ends, once it has said what there was; infinite where nobody would come back."""

    async def piece(self) -> bytes | None:
        """Return what is there to be sent now, maybe nothing; None at the end."""

    async def news(self) -> None:
        """Wait until there may be something to send."""


class Streams:
    """The streams under way. All of them end with the service, at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owners: Counter[str] = Counter()
        self._waits: set[asyncio.Timeout] = set()
        self._is_closing = False

    @contextlib.contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """Let an owner have one more stream while the block lasts.

        Raises:
            BusyError: there are too many.
        """
        check_streams(self._settings, self._owners[owner], self._owners.total())
        self._owners[owner] += 1
        try:
            yield
        finally:
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    def close(self) -> None:
        """End all streams; none begins any more."""
        self._is_closing = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            # One that is over already is about to look by itself.
            if not wait.expired():
                wait.reschedule(now)

    async def answer(
        self, request: web.Request, owner: str, media_type: str, source: Source
    ) -> web.StreamResponse:
        """Send what a source gives, piece by piece, until its end, the caller's or the service's.

        The caller's token ends it, too, when it is good for nothing any more.

        Raises:
            BusyError: the owner has too many streams.
        """
        began = time.perf_counter()
        headers = {
            "Content-Type": media_type,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            # A proxy that collects answers would hold the news back.
            "X-Accel-Buffering": "no",
        }
        response = web.StreamResponse(headers=headers)
        if request.method == "HEAD":
            return response
        with self.place(owner):
            await response.prepare(request)
            # How long its caller listens says nothing about the service.
            request[ANSWERED_IN] = time.perf_counter() - began
            with contextlib.suppress(ConnectionError):
                try:
                    await self._send(request, response, source)
                except PersephoneError as error:
                    # Whoever asks again goes on where this one ends.
                    logger.warning("a stream ends early: %s", error)
                await response.write_eof()
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, source: Source
    ) -> None:
        loop = asyncio.get_running_loop()
        began = spoke_at = asked_at = loop.time()
        while (piece := await source.piece()) is not None:
            if loop.time() - asked_at >= _HEARTBEAT_SECONDS:
                # Of what was revoked or has expired meanwhile nothing more is told.
                token_of(request)
                asked_at = loop.time()
            if piece:
                # Waits for a caller that reads slowly.
                await response.write(piece)
                spoke_at = loop.time()
            elif (
                self._is_closing
                or request.transport is None
                or request.transport.is_closing()
                or loop.time() - began >= source.longest_seconds
            ):
                return
            elif source.heartbeat and loop.time() - spoke_at >= _HEARTBEAT_SECONDS:
                await response.write(source.heartbeat)
                spoke_at = loop.time()
            else:
                await self._wait(source)

    async def _wait(self, source: Source) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS) as wait:
                self._waits.add(wait)
                try:
                    await source.news()
                finally:
                    self._waits.discard(wait)


STREAMS = web.AppKey("streams", Streams)
