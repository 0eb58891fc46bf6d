"""The gateway's hop to a replica: streams both ways, repeats only what is safe to repeat."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from server.api.bodies import body_pieces, read_body
from server.api.middleware import REQUEST_ID
from server.errors import DeadlineError, PersephoneError, TooLargeError, UnavailableError

if TYPE_CHECKING:
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
_NOT_PASSED_BACK = _HOP | {"set-cookie", "server", "date"}


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
        self, request: web.Request, url: URL, replica_id: str, secret: str | None
    ) -> web.StreamResponse:
        """Hand a request to a replica and its answer back.

        Connections are kept per ``replica_id``: those to a replaced one are not used again.

        Raises:
            UnavailableError: nobody answers; DeadlineError: too slowly.
            TooLargeError: the body is over 64 MiB.
        """
        headers = _request_headers(request, secret)
        length = request.content_length
        if length is not None and length > MAX_BODY_BYTES:
            raise TooLargeError("body_too_large", limit=MAX_BODY_BYTES)
        if not request.body_exists or (length is not None and length <= _HELD_BYTES):
            return await self._forward_held(request, url, replica_id, headers)
        # A body that is not held cannot be sent twice: no kept connection may fail it.
        call = self._fresh.request(
            request.method, url, headers=headers, data=body_pieces(request, MAX_BODY_BYTES)
        )
        return await _answer(request, call)

    async def _forward_held(
        self, request: web.Request, url: URL, replica_id: str, headers: CIMultiDict[str]
    ) -> web.StreamResponse:
        body = await read_body(request, MAX_BODY_BYTES) if request.body_exists else None
        noted = SimpleNamespace(reused=False)
        try:
            call = self._kept.request(
                request.method,
                url,
                headers=headers,
                data=body,
                trace_request_ctx=noted,
                # Means nothing without TLS, save that the pool tells connections apart by it.
                server_hostname=replica_id,
            )
            return await _answer(request, call)
        except _ConnectionEndedError as error:
            if not noted.reused:
                raise UnavailableError("replica_broke_off") from error
        call = self._fresh.request(request.method, url, headers=headers, data=body)
        return await _answer(request, call)


GATEWAY = web.AppKey("gateway", Gateway)


class _ConnectionEndedError(UnavailableError):
    """The connection ended before any byte of an answer."""


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


async def _answer(
    request: web.Request, call: aiohttp.client._RequestContextManager
) -> web.StreamResponse:
    try:
        async with call as came:
            return await _pass_back(request, came)
    except TimeoutError as error:
        raise DeadlineError("prediction_timed_out_at_gateway") from error
    except aiohttp.ServerDisconnectedError as error:
        raise _ConnectionEndedError("replica_broke_off") from error
    except aiohttp.ClientPayloadError as error:
        raise UnavailableError("replica_broke_off") from error
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error.__cause__, PersephoneError):
            # Not the replica's failure but the caller's: its body is too large or too slow.
            raise error.__cause__ from None
        raise _ConnectionEndedError("replica_absent") from error


async def _pass_back(request: web.Request, came: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = CIMultiDict(
        (name, value)
        for name, value in came.headers.items()
        if name.lower() not in _NOT_PASSED_BACK
    )
    length = came.content_length
    if length is not None and length <= _HELD_BYTES:
        body = await came.read()
        headers.popall("Content-Length", None)
        return web.Response(status=came.status, headers=headers, body=body)
    answer = web.StreamResponse(status=came.status, headers=headers)
    await answer.prepare(request)
    async for chunk in came.content.iter_any():
        await answer.write(chunk)
    await answer.write_eof()
    return answer
