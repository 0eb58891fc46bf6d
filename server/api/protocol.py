"""HTTP below the application: deadlines for headers, and JSON where the request is no request."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from server.api.connections import EXHAUSTED, EXHAUSTED_FOR_ADDRESS, peer_of
from server.api.errors import RETRY_AFTER_SECONDS, error_body
from server.api.replies import dumps, reply

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from server.api.connections import Connections
    from server.api.middleware import Edge

logger = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
SILENT_SECONDS = 20.0
KEEPALIVE_SECONDS = 30.0

_REASONS = {
    408: "Request Timeout",
    429: "Too Many Requests",
    503: "Service Unavailable",
}
# How long a connection is held whose refusal its caller has still to read, and how many are.
_FAREWELL_SECONDS = 2.0
_FAREWELLS = 64


class EdgeProtocol(RequestHandler):
    """One connection. Who sends no whole head of a request in time is answered 408 and closed."""

    __slots__ = (
        "_deadline",
        "_edge",
        "_header_seconds",
        "_is_in_head",
        "_of",
        "_silent_seconds",
        "_waiting_since",
        "_wire",
    )

    def __init__(
        self,
        manager: _EdgeServer,
        *,
        edge: Edge,
        header_seconds: float,
        silent_seconds: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(manager, **kwargs)
        self._of = manager
        self._edge = edge
        self._header_seconds = header_seconds
        self._silent_seconds = silent_seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._is_in_head = False
        self._waiting_since = 0.0
        # The base class forgets its transport when it closes it, with bytes still to be sent.
        self._wire: asyncio.Transport | None = None

    # ── what the count of connections asks

    @property
    def waiting_since(self) -> float | None:
        """When it began to wait for a request, on the event loop's clock; None while one is on it."""
        is_new = not self._request_count
        return self._waiting_since if is_new or self._awaits_request else None

    @property
    def _awaits_request(self) -> bool:
        return self._waiter is not None and not self._messages

    @property
    def has_served(self) -> bool:
        """Whether a request ever came on it."""
        return self._request_count > 0

    @property
    def unread_bytes(self) -> int:
        """Bytes of answers that its caller has not taken yet."""
        return 0 if self._wire is None else self._wire.get_write_buffer_size()

    def make_room(self) -> None:
        """Close it, since another one needs its place."""
        wire = self._wire
        if self.has_served:
            # To answer what nobody asked would look like the answer to the next request.
            self.force_close()
        else:
            self._edge.refused(EXHAUSTED)
            self._refuse(503, EXHAUSTED)
        if wire is not None:
            self._loop.call_later(_FAREWELL_SECONDS, wire.abort)

    def abort(self) -> None:
        """Close it at once, whatever is unsent."""
        if self._wire is not None:
            self._wire.abort()

    # ── what the event loop says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request, or refuse the connection where there are too many."""
        transport = cast("asyncio.Transport", transport)
        code = self._of.opened.admit(self, _peer(transport))
        if code is not None:
            self._of.farewells.say(transport, self._refusal(_status_of(code), code))
            return
        self._wire = transport
        self._waiting_since = self._loop.time()
        super().connection_made(transport)
        self._wait_until(self._silent_seconds, "connection_silent")

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer; the first ones of a request start its deadline."""
        count = self._request_count
        super().data_received(data)
        if self._request_count != count:
            self._is_in_head = False
            self._cancel_deadline()
        elif not self._is_in_head and (self._waiter is not None or not count):
            self._is_in_head = True
            self._wait_until(self._header_seconds, "headers_too_slow")

    def resume_writing(self) -> None:
        """Go on writing: the caller has read."""
        super().resume_writing()
        self._of.opened.moved(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._cancel_deadline()
        self._of.opened.leave(self)
        self._wire = None
        super().connection_lost(exc)

    # ── answers

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never reached, or never left, the application."""
        if isinstance(exc, ConnectionError):
            raise exc
        if request.writer.output_size > 0:
            raise ConnectionError("the answer broke off")
        if status >= 500:
            logger.error("unexpected error below the application", exc_info=exc)
            code = "operation_timed_out" if status == 504 else "internal_error"
        elif isinstance(exc, LineTooLong):
            status, code = 431, "headers_too_large"
        else:
            code = "http_malformed"
        logger.info("%s from %s", code, request.remote)
        self._edge.refused(code)
        request_id = self._edge.next_id()
        language = self._edge.language(request) if request.headers else None
        text = self._edge.messages.render(code, {}, language)
        headers = {"X-Request-Id": request_id}
        response = reply(error_body(code, text, request_id), status, headers)
        response.force_close()
        return response

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; what aiohttp raised before any middleware ran becomes JSON first."""
        # The type is asked first: isinstance is slow for abstract classes.
        if (
            type(resp) is not web.Response
            and isinstance(resp, web.HTTPException)
            and resp.status >= 400
        ):
            if isinstance(request, web.Request):
                resp = self._edge.answer(request, resp)
            resp.force_close()
        sent = await super().finish_response(request, resp, start_time)
        self._waiting_since = self._loop.time()
        return sent

    def _process_keepalive(self) -> None:
        """Close what waits for its next request in silence; one that has begun has a deadline."""
        if self._is_in_head:
            self._keepalive_handle = None
        else:
            super()._process_keepalive()

    def _wait_until(self, seconds: float, code: str) -> None:
        self._cancel_deadline()
        self._deadline = self._loop.call_later(seconds, self._give_up, code)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self, code: str) -> None:
        self._deadline = None
        if self._awaits_request:
            self._edge.refused(code)
            self._refuse(408, code)

    def _refuse(self, status: int, code: str) -> None:
        if self.transport is not None:
            self.transport.write(self._refusal(status, code))
        self.force_close()

    def _refusal(self, status: int, code: str) -> bytes:
        """Write an answer to no request."""
        seconds = {"headers_too_slow": self._header_seconds}.get(code, self._silent_seconds)
        text = self._edge.messages.render(code, {"seconds": seconds})
        request_id = self._edge.next_id()
        body = dumps(error_body(code, text, request_id))
        retry = RETRY_AFTER_SECONDS.get(status)
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
            "Content-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-Id: {request_id}\r\n"
            + ("" if retry is None else f"Retry-After: {retry}\r\n")
            + "Connection: close\r\n\r\n"
        )
        return head.encode() + body


class _Farewells:
    """Refused connections, held for a moment so that the refusal reaches its reader.

    Closed with unread bytes of the caller a connection is reset, and the answer may be lost.
    """

    def __init__(self) -> None:
        self.number = 0

    def say(self, transport: asyncio.Transport, answer: bytes) -> None:
        """Write an answer to a connection and close it; at once if there are too many of them."""
        if self.number >= _FAREWELLS:
            transport.abort()
            return
        transport.set_protocol(_Farewell(self, transport))
        transport.write(answer)
        transport.write_eof()


class _Farewell(asyncio.Protocol):
    def __init__(self, of: _Farewells, transport: asyncio.Transport) -> None:
        of.number += 1
        self._of = of
        loop = asyncio.get_running_loop()
        self._end = loop.call_later(_FAREWELL_SECONDS, transport.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end.cancel()
        self._of.number -= 1


def _peer(transport: asyncio.Transport) -> str | None:
    peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    return peer_of(peer[0], local[0]) if peer and local else None


def _status_of(code: str) -> int:
    return 429 if code == EXHAUSTED_FOR_ADDRESS else 503


class _EdgeServer(web.Server):
    """Makes our protocol for every connection."""

    def __init__(self, handler: Any, *, connections: Connections, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self.opened = connections
        self.farewells = _Farewells()

    def __call__(self) -> RequestHandler:
        return EdgeProtocol(self, loop=self._loop, **self._kwargs)


class EdgeRunner(web.AppRunner):
    """Runs an application whose edge was set up by :func:`server.api.edge.setup_edge`."""

    __slots__ = ("_connections", "_edge", "_header_seconds", "_silent_seconds")

    def __init__(
        self,
        app: web.Application,
        edge: Edge,
        connections: Connections,
        *,
        header_seconds: float = HEADER_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
        **kwargs: Any,
    ) -> None:
        # Uploads are taken as they are: inflating turns 200 kB into 200 MB.
        super().__init__(
            app,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=keepalive_seconds,
            **kwargs,
        )
        self._edge = edge
        self._connections = connections
        self._header_seconds = header_seconds
        self._silent_seconds = silent_seconds

    async def finish(self, seconds: float) -> None:
        """Take no further connection; let changes that have begun, uploads too, come to an end.

        The base class reads nothing more once it shuts down, so that an upload could only be cut.
        """
        for site in list(self.sites):
            await site.stop()
        await self._edge.finish(seconds)

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _EdgeServer(
            plain.request_handler,
            connections=self._connections,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            loop=asyncio.get_running_loop(),
            edge=self._edge,
            header_seconds=self._header_seconds,
            silent_seconds=self._silent_seconds,
            # Private, so aiohttp is pinned and the tests of malformed requests hold it.
            **plain._kwargs,
        )
