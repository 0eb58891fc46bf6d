"""One HTTP/1.1 connection to a replica, whose answers are foreign text.

aiohttp's client costs more than everything else that the gateway does together, and reads interim
answers without end (docs/decisions/0011). This one speaks to one kind of server, and leaves the
parsing to httptools. Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_HEAD_BYTES = 64 * 1024
_BUFFERED_BYTES = 256 * 1024
"""What is held of an answer while its reader is slow; beyond, the replica has to wait."""


class UpstreamError(Exception):
    """The replica could not be asked, or did not answer as a server does."""


class AbsentError(UpstreamError):
    """Nobody takes connections there."""


class EndedError(UpstreamError):
    """The connection ended before any byte of an answer."""


class SilentError(UpstreamError):
    """No byte came for too long."""


class Exchange(asyncio.Protocol):
    """One connection, and the request that it carries now; methods belong to the event loop.

    ``most_bytes`` bounds an answer with its head and all that lies between its parts. ``status``, ``headers`` (lower-case names) and ``length`` (None if unknown) are those of the
    answer once :meth:`answered` has returned.
    """

    def __init__(self, silent_seconds: float, most_bytes: float = math.inf) -> None:
        self._silent_seconds = silent_seconds
        self._most_bytes = most_bytes
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.idle_since = 0.0
        # One for all answers: a connection whose answer it could not read to its end is not kept.
        self._parser = httptools.HttpResponseParser(self)
        self._begin(is_head=False)

    def _begin(self, *, is_head: bool) -> None:
        self._is_head = is_head
        self._has_begun = False
        # Bytes since the last ones that were a body's: heads, sizes of chunks, trailers.
        self._unused = self._received = 0
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._is_paused = False
        self._has_head = self._is_whole = self._keeps = self._is_sending = False
        self._is_cut = False
        self._error: UpstreamError | None = None
        self._last = self._loop.time()
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.length: int | None = None

    # ── the request

    @property
    def is_usable(self) -> bool:
        """Whether it can carry a request."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes, *, is_head: bool = False) -> None:
        """Write a request, or the beginning of one."""
        self._begin(is_head=is_head)
        if self._timer is None:
            self._timer = self._loop.call_later(self._silent_seconds, self._watch)
        if self._transport is None:
            self._fail(EndedError("the connection is gone"))
        elif body:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head)

    async def send_more(self, pieces: AsyncIterator[bytes], *, is_chunked: bool) -> None:
        """Write a body as it comes, no faster than it is taken."""
        self._is_sending = self._is_cut = True
        try:
            async for piece in pieces:
                if self._transport is None or self._error is not None:
                    return
                if is_chunked:
                    self._transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
                else:
                    self._transport.write(piece)
                await self._writable.wait()
            if is_chunked and self._transport is not None:
                self._transport.write(b"0\r\n\r\n")
            # Else the replica would take the next request for the rest of this one.
            self._is_cut = False
        finally:
            self._is_sending = False
            self._last = self._loop.time()

    # ── the answer

    async def answered(self) -> None:
        """Wait for the head of the answer.

        Raises:
            EndedError: the connection ended before any of it came.
            SilentError: nothing came for too long.
            UpstreamError: it is no answer.
        """
        while not self._has_head:
            await self._more()

    async def piece(self) -> bytes:
        """Return what has come of the body, or nothing at its end; raises as ``answered``."""
        while not self._pieces:
            if self._is_whole:
                return b""
            await self._more()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._last = self._loop.time()
            self._transport.resume_reading()
        return data

    async def whole(self) -> bytes:
        """Return all of a body that is small enough to be held; raises as ``answered``."""
        if self._is_whole and len(self._pieces) == 1:
            return self._pieces.pop()
        parts = []
        while part := await self.piece():
            parts.append(part)
        return b"".join(parts)

    @property
    def is_reusable(self) -> bool:
        """Whether the answer was read to its end and the connection stays."""
        return (
            self._is_whole
            and not self._pieces
            and not self._is_head
            and self._keeps
            and not self._is_cut
            and self.is_usable
        )

    def rest(self) -> None:
        """Note that the connection waits for another request from now on."""
        self.idle_since = self._loop.time()

    def close(self) -> None:
        """End the connection at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: UpstreamError) -> None:
        if self._error is None and not self._is_whole:
            self._error = error
        self._wake()
        self._writable.set()

    def _break_off(self, error: UpstreamError) -> None:
        self._fail(error)
        self._transport.abort()

    def _watch(self) -> None:
        """Look from time to time whether the replica is silent, which costs no timer a request."""
        self._timer = None
        if self._is_whole or self._error is not None:
            return
        if self._is_paused or (self._is_sending and self._writable.is_set()):
            # We wait for the caller, not for the replica.
            self._last = self._loop.time()
        left = self._last + self._silent_seconds - self._loop.time()
        if left <= 0:
            self._fail(SilentError("no byte came in time"))
            self.close()
            return
        self._timer = self._loop.call_later(left, self._watch)

    # ── called by the transport

    def connection_made(self, transport: Any) -> None:
        """Take the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read a part of the answer."""
        if self._error is not None:
            return
        self._last = self._loop.time()
        self._has_begun = True
        self._unused += len(data)
        self._received += len(data)
        if self._received > self._most_bytes:
            self._break_off(UpstreamError("an answer that is too long"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break_off(UpstreamError("no HTTP"))
        if not self._is_whole and self._unused > _HEAD_BYTES:
            self._break_off(UpstreamError("a head or a trailer without end"))
        if self._held > _BUFFERED_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what still waits."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        reason = "the connection ended"
        self._fail(UpstreamError(reason) if self._has_begun else EndedError(reason))

    def pause_writing(self) -> None:
        """Hold the body back: the replica is slow to take it."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on with the body, of which the replica has just taken much."""
        self._last = self._loop.time()
        self._writable.set()

    # ── called by the parser

    def on_message_begin(self) -> None:
        """Trust no connection that says more than it was asked."""
        if self._is_whole:
            self._keeps = False
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; of a repeated one the last counts, and of trailers none."""
        if not self._has_head:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Take the head, unless it only says that the real one is still to come."""
        if self._is_whole:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self.headers = {}
            return
        self.status = status
        length = self.headers.get(b"content-length")
        self.length = int(length) if length is not None and length.isdigit() else None
        self._has_head = True
        self._keeps = self._parser.should_keep_alive()
        self._is_whole = self._is_head

    def on_body(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self._unused = 0
        if not self._is_whole:
            self._pieces.append(piece)
            self._held += len(piece)

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        if self._has_head:
            self._is_whole = True
