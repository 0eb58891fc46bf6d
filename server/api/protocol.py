"""HTTP below the application: deadlines for headers, and JSON where the request is no request."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from server.api.errors import error_body
from server.api.replies import dumps, reply

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from server.api.middleware import Edge

logger = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
KEEPALIVE_SECONDS = 30.0


class EdgeProtocol(RequestHandler):
    """One connection. A request whose headers do not arrive in time is answered 408 and closed."""

    __slots__ = ("_edge", "_header_seconds", "_header_timer")

    def __init__(
        self, manager: web.Server, *, edge: Edge, header_seconds: float, **kwargs: Any
    ) -> None:
        super().__init__(manager, **kwargs)
        self._edge = edge
        self._header_seconds = header_seconds
        self._header_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer; the first ones of a request start its deadline."""
        count = self._request_count
        super().data_received(data)
        if self._request_count != count:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
        elif self._header_timer is None and (self._waiter is not None or not count):
            self._header_timer = asyncio.get_running_loop().call_later(
                self._header_seconds, self._give_up
            )

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the deadline with the connection."""
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        super().connection_lost(exc)

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
        return await super().finish_response(request, resp, start_time)

    def _give_up(self) -> None:
        self._header_timer = None
        if self._waiter is None or self.transport is None or self._messages:
            return
        text = self._edge.messages.render("headers_too_slow", {"seconds": self._header_seconds})
        request_id = self._edge.next_id()
        body = dumps(error_body("headers_too_slow", text, request_id))
        head = (
            "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-Id: {request_id}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.force_close()


class _EdgeServer(web.Server):
    """Makes our protocol for every connection."""

    def __call__(self) -> RequestHandler:
        return EdgeProtocol(self, loop=self._loop, **self._kwargs)


class EdgeRunner(web.AppRunner):
    """Runs an application whose edge was set up by :func:`server.api.edge.setup_edge`."""

    __slots__ = ("_edge", "_header_seconds")

    def __init__(
        self,
        app: web.Application,
        edge: Edge,
        *,
        header_seconds: float = HEADER_SECONDS,
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
        self._header_seconds = header_seconds

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _EdgeServer(
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            loop=asyncio.get_running_loop(),
            edge=self._edge,
            header_seconds=self._header_seconds,
            # Private, so aiohttp is pinned and the tests of malformed requests hold it.
            **plain._kwargs,
        )
