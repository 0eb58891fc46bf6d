"""Answers on a deployment's own address while no replica is there to do it."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any, cast

import orjson
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from server.messages import Messages

RETRY_AFTER_SECONDS = 2
CALL_SECONDS = 10.0
"""How long a caller is listened to, who gets the same answer whatever he says."""
MAX_CALLS = 256
"""Callers at all addresses at once; their connections are the service's own."""
_INFERENCE = re.compile(r"/v2/models/[^/]+/infer")


class Calls:
    """The connections of all doormen; one too many ends the oldest, which asked for nothing yet."""

    def __init__(self, limit: int = MAX_CALLS) -> None:
        self._limit = limit
        self._open: dict[_Call, asyncio.Transport] = {}

    def begin(self, call: _Call, transport: asyncio.Transport) -> None:
        """Count one."""
        if len(self._open) >= self._limit:
            self._open.pop(next(iter(self._open))).abort()
        self._open[call] = transport

    def end(self, call: _Call) -> None:
        """Forget one; unknown is fine."""
        self._open.pop(call, None)


class _Call(RequestHandler):
    """A connection, with a deadline for all that happens on it."""

    __slots__ = ("_calls", "_deadline", "_refusal")

    def __init__(
        self, server: web.Server, calls: Calls, refusal: Callable[..., web.Response], **kwargs: Any
    ) -> None:
        super().__init__(server, **kwargs)
        self._calls = calls
        self._refusal = refusal
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to listen."""
        super().connection_made(transport)
        transport = cast("asyncio.Transport", transport)
        self._deadline = self._loop.call_later(CALL_SECONDS, transport.abort)
        self._calls.begin(self, transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._calls.end(self)
        super().connection_lost(exc)

    def handle_error(self, request: web.BaseRequest, *_: Any, **__: Any) -> web.StreamResponse:
        """Answer what is no request as every other."""
        return self._refusal(request)


class _Doorman(web.Server):
    def __init__(self, answer: Callable[..., Any], **kept: Any) -> None:
        super().__init__(answer)
        self._kept = kept

    def __call__(self) -> RequestHandler:
        return _Call(self, loop=self._loop, **self._kept)


def make_doorman(
    messages: Messages, refused: Callable[[], None], calls: Calls | None = None
) -> web.Server:
    """Return a server whose every answer is 503.

    ``refused`` is called for each inference that was turned away: those count as errors. ``calls``
    is shared by all servers of this process.
    """

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.method == "POST" and _INFERENCE.fullmatch(request.path):
            refused()
        return refusal(request)

    def refusal(request: web.BaseRequest) -> web.Response:
        language = messages.language(request.headers.get("Accept-Language"))
        text = messages.render("replica_absent", {}, language)
        body = {
            "error": text,
            "message": text,
            "code": "replica_absent",
            "requestId": uuid.uuid4().hex,
        }
        response = web.Response(
            status=503,
            body=orjson.dumps(body),
            content_type="application/json",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
        # A kept connection would stay here when the replicas are back.
        response.force_close()
        return response

    return _Doorman(answer, calls=calls or Calls(), refusal=refusal)
