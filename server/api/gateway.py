"""The gateway's hop to a replica: streams both ways, repeats only what is safe to repeat."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from server.api.bodies import body_pieces, read_body
from server.api.middleware import REQUEST_ID
from server.errors import DeadlineError, PersephoneError, TooLargeError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from yarl import URL

MAX_BODY_BYTES = 64 * 1024 * 1024
SECRET_HEADER = "X-Persephone-Secret"  # noqa: S105 - the header's name
_HELD_BYTES = 256 * 1024
_CONNECT_SECONDS = 2.0
_GRACE_SECONDS = 5.0
# Shorter than a replica keeps an idle connection, so that one about to be closed is not picked.
_KEEP_SECONDS = 10.0
# Meant for one hop only, or a secret between the caller and the service.
_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)
_NOT_PASSED_ON = _HOP | {"host", "cookie", "authorization", "expect", SECRET_HEADER.lower()}
# A model is foreign code, and its answers come from the API's own origin: nothing that a browser
# acts on is taken from it.
_PASSED_BACK = (
    "Content-Encoding",
    "Allow",
    "Retry-After",
    "WWW-Authenticate",
    "Inference-Header-Content-Length",
)
_JSON = "application/json"
_BYTES = "application/octet-stream"
# A redirect would lead the caller, or us, wherever a model likes.
_STATUSES = frozenset({*range(200, 300), *range(400, 600)})


class Gateway:
    """Reaches replicas on their deployment's own address."""

    def __init__(self, predict_seconds: float) -> None:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=_CONNECT_SECONDS,
            sock_read=predict_seconds + _GRACE_SECONDS,
        )
        self._kept = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_SECONDS),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[tracing],
        )
        self._fresh = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._kept.close()
        await self._fresh.close()

    async def forward(
        self, request: web.Request, url: URL, pool: str, secret: str | None
    ) -> web.StreamResponse:
        """Hand a request to a replica and its answer back.

        Connections are kept per ``pool``: those to a replaced version are not used again.

        Raises:
            UnavailableError: nobody answers, or not as a model does; DeadlineError: too slowly.
            TooLargeError: the body is over 64 MiB.
            ConnectionError: the caller has gone.
        """
        headers = _request_headers(request, secret)
        length = request.content_length
        if length is not None and length > MAX_BODY_BYTES:
            raise TooLargeError("body_too_large", limit=MAX_BODY_BYTES)
        if not request.body_exists or (length is not None and length <= _HELD_BYTES):
            came = await self._ask_held(request, url, pool, headers)
        else:
            came = await self._ask_streaming(request, url, headers)
        async with came:
            return await _pass_back(request, came)

    async def _ask_held(
        self, request: web.Request, url: URL, pool: str, headers: CIMultiDict[str]
    ) -> aiohttp.ClientResponse:
        body = await read_body(request, MAX_BODY_BYTES) if request.body_exists else None
        noted = SimpleNamespace(reused=False)
        call = self._kept.request(
            request.method,
            url,
            headers=headers,
            data=body,
            allow_redirects=False,
            trace_request_ctx=noted,
            # Means nothing without TLS, save that the pool tells connections apart by it.
            server_hostname=pool,
        )
        try:
            return await _asked(call)
        except _ConnectionEndedError:
            if not noted.reused:
                raise
        call = self._fresh.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        )
        return await _asked(call)

    async def _ask_streaming(
        self, request: web.Request, url: URL, headers: CIMultiDict[str]
    ) -> aiohttp.ClientResponse:
        body = _StreamedBody(request)
        # A body that is not held cannot be sent twice: no kept connection may fail it.
        call = self._fresh.request(
            request.method, url, headers=headers, data=body.pieces(), allow_redirects=False
        )
        try:
            return await _asked(call)
        except PersephoneError:
            if body.failure is not None:
                # Not the replica's failure but the caller's: gone, too large or too slow.
                raise body.failure from None
            raise


GATEWAY = web.AppKey("gateway", Gateway)


class _ConnectionEndedError(UnavailableError):
    """The connection ended before any byte of an answer."""


class _StreamedBody:
    """The caller's body on its way, and how the caller failed to send it."""

    def __init__(self, request: web.Request) -> None:
        self.failure: Exception | None = None
        self._request = request

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        try:
            async for piece in body_pieces(self._request, MAX_BODY_BYTES):
                yield piece
        except Exception as error:
            self.failure = error
            raise


async def _note_reuse(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: object
) -> None:
    context.trace_request_ctx.reused = True


def _request_headers(request: web.Request, secret: str | None) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in request.headers.get("Connection", "").split(",")}
    kept = CIMultiDict(
        (name, value)
        for name, value in request.headers.items()
        if name.lower() not in _NOT_PASSED_ON and name.lower() not in named
    )
    kept["X-Request-Id"] = request[REQUEST_ID]
    if secret is not None:
        kept[SECRET_HEADER] = secret
    return kept


async def _asked(call: aiohttp.client._RequestContextManager) -> aiohttp.ClientResponse:
    """Send a request and return the head of its answer."""
    with _replica_failures():
        try:
            return await call
        except aiohttp.ClientConnectorError as error:
            raise UnavailableError("replica_absent") from error
        except aiohttp.ServerDisconnectedError as error:
            if not isinstance(error.message, str):
                # Half a head came.
                raise
            raise _ConnectionEndedError("replica_broke_off") from error
        except aiohttp.ClientOSError as error:
            raise _ConnectionEndedError("replica_broke_off") from error


@contextmanager
def _replica_failures() -> Iterator[None]:
    """Give the failures of a replica their names. Around nothing that touches the caller."""
    try:
        yield
    except TimeoutError as error:
        raise DeadlineError("prediction_timed_out_at_gateway") from error
    except (aiohttp.ClientError, OSError) as error:
        raise UnavailableError("replica_broke_off") from error


async def _pass_back(request: web.Request, came: aiohttp.ClientResponse) -> web.StreamResponse:
    if came.status not in _STATUSES:
        raise UnavailableError("replica_broke_off")
    headers = _answer_headers(came)
    length = came.content_length
    if length is not None and length <= _HELD_BYTES and request.method != "HEAD":
        with _replica_failures():
            body = await came.read()
        return web.Response(status=came.status, headers=headers, body=body)
    answer = web.StreamResponse(status=came.status, headers=headers)
    answer.content_length = length
    await answer.prepare(request)
    while piece := await _piece(came):
        await answer.write(piece)
    await answer.write_eof()
    return answer


async def _piece(came: aiohttp.ClientResponse) -> bytes:
    """Return what has arrived of an answer, or nothing at its end."""
    with _replica_failures():
        return await came.content.readany()


def _answer_headers(came: aiohttp.ClientResponse) -> CIMultiDict[str]:
    headers = CIMultiDict(
        (name, value) for name in _PASSED_BACK for value in came.headers.getall(name, ())
    )
    headers["Content-Type"] = _JSON if came.content_type == _JSON else _BYTES
    headers["X-Content-Type-Options"] = "nosniff"
    return headers
