"""The gateway's hop to a replica: streams both ways, repeats only what is safe to repeat."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web
from multidict import CIMultiDict

from server.api.bodies import body_pieces, read_body
from server.api.middleware import REQUEST_ID
from server.api.upstream import Upstream
from server.errors import DeadlineError, TooLargeError, UnavailableError
from server.exchange import AbsentError, EndedError, SilentError, UpstreamError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.api.upstream import Place
    from server.exchange import Exchange
    from server.tracing import Attributes, Tracing

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
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_OURS = frozenset(
    {b"host", b"content-length", b"cookie", b"authorization", b"expect", b"x-request-id"}
)
_NOT_PASSED_ON = _HOP | _OURS | {SECRET_HEADER.lower().encode()}
# The caller's own, unless there is a span of ours in between.
_TRACE = frozenset({b"traceparent", b"tracestate"})
# A model is foreign code, and its answers come from the API's own origin: nothing that a browser
# acts on is taken from it.
_PASSED_BACK = (
    "Content-Encoding",
    "Allow",
    "Retry-After",
    "Vary",
    "WWW-Authenticate",
    "Inference-Header-Content-Length",
)
_PASSED_RAW = tuple((name, name.lower().encode()) for name in _PASSED_BACK)
_JSON = "application/json"
_BYTES = "application/octet-stream"
# RFC 9110, section 15.5.20: it may be repeated over another connection.
_MISDIRECTED = 421
# A redirect would lead the caller, or us, wherever a model likes.
_STATUSES = frozenset({*range(200, 300), *range(400, 600)})


class _Way(NamedTuple):
    """What a request says to the replica beside what its caller said."""

    target: str
    secret: str | None
    trace: Mapping[str, str] | None


class Gateway:
    """Reaches replicas on their deployment's own address."""

    def __init__(self, predict_seconds: float, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self._upstream = Upstream(
            connect_seconds=_CONNECT_SECONDS,
            silent_seconds=predict_seconds + _GRACE_SECONDS,
            keep_seconds=_KEEP_SECONDS,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._upstream.close()

    async def forward(
        self, request: web.Request, place: Place, target: str, secret: str | None
    ) -> web.StreamResponse:
        """Hand a request to a replica and its answer back; ``target`` is the path and the query.

        Raises:
            UnavailableError: nobody answers, or not as a model does; DeadlineError: too slowly.
            TooLargeError: the body is over 64 MiB.
            ConnectionError: the caller has gone.
        """
        length = request.content_length
        if length is not None and length > MAX_BODY_BYTES:
            raise TooLargeError("body_too_large", limit=MAX_BODY_BYTES)
        if self._tracing is None:
            return await self._hop(request, place, target, secret)
        attributes: Attributes = {"server.address": place.host, "server.port": place.port}
        with self._tracing.span("gateway hop", "client", attributes=attributes) as span:
            answer = await self._hop(request, place, target, secret, self._tracing.headers())
            span.set_attribute("http.response.status_code", answer.status)
            return answer

    async def _hop(
        self,
        request: web.Request,
        place: Place,
        target: str,
        secret: str | None,
        trace: Mapping[str, str] | None = None,
    ) -> web.StreamResponse:
        """Hand a request on; ``trace`` replaces what the caller's headers say of its trace."""
        length = request.content_length
        is_held = not request.body_exists or (length is not None and length <= _HELD_BYTES)
        ask = self._ask_held if is_held else self._ask_streaming
        try:
            exchange = await ask(request, place, _Way(target, secret, trace))
            try:
                return await _pass_back(request, exchange)
            finally:
                self._upstream.give_back(place, exchange)
        except AbsentError as error:
            raise UnavailableError("replica_absent") from error
        except SilentError as error:
            raise DeadlineError("prediction_timed_out_at_gateway") from error
        except UpstreamError as error:
            raise UnavailableError("replica_broke_off") from error

    async def _ask_held(self, request: web.Request, place: Place, way: _Way) -> Exchange:
        body = await read_body(request, MAX_BODY_BYTES) if request.body_exists else b""
        framing = b"Content-Length: %d\r\n" % len(body) if request.body_exists else b""
        head = _head(request, place, way, framing)
        is_head = request.method == "HEAD"
        kept = self._upstream.kept(place)
        if kept is not None:
            kept.send(head, body, is_head=is_head)
            try:
                answered = await self._answered(kept)
                if answered.status != _MISDIRECTED:
                    return answered
                self._upstream.drop(answered)
            except EndedError:
                # Most likely the replica let go of it while the request was on its way. If it died of
                # the request, one more dies of it: a prediction changes nothing, so it may be repeated.
                pass
        fresh = await self._upstream.fresh(place)
        fresh.send(head, body, is_head=is_head)
        return await self._answered(fresh)

    async def _ask_streaming(self, request: web.Request, place: Place, way: _Way) -> Exchange:
        length = request.content_length
        framing = (
            b"Transfer-Encoding: chunked\r\n"
            if length is None
            else b"Content-Length: %d\r\n" % length
        )
        # A body that is not held cannot be sent twice: no kept connection may fail it.
        head = _head(request, place, way, framing)
        exchange = await self._upstream.fresh(place)
        exchange.send(head, b"", is_head=request.method == "HEAD")
        pieces = body_pieces(request, MAX_BODY_BYTES)
        sending = asyncio.ensure_future(exchange.send_more(pieces, is_chunked=length is None))
        answering = asyncio.ensure_future(exchange.answered())
        try:
            # A refusal comes before the body is whole, and its caller may wait for it.
            await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not answering.done():
                # Raises the caller's failure: gone, too large or too slow.
                sending.result()
            await answering
        except BaseException:
            self._upstream.drop(exchange)
            raise
        finally:
            for task in (sending, answering):
                task.cancel()
            await asyncio.gather(sending, answering, return_exceptions=True)
        return exchange

    async def _answered(self, exchange: Exchange) -> Exchange:
        try:
            await exchange.answered()
        except BaseException:
            self._upstream.drop(exchange)
            raise
        return exchange


GATEWAY = web.AppKey("gateway", Gateway)


def _head(request: web.Request, place: Place, way: _Way, framing: bytes) -> bytes:
    """Write a request's head: the caller's headers, but for those of its own connection."""
    connection = request.headers.get("Connection", "")
    named = {
        name.strip().lower() for name in connection.encode("utf-8", "surrogateescape").split(b",")
    }
    dropped = _NOT_PASSED_ON if way.trace is None else _NOT_PASSED_ON | _TRACE
    lines = [
        f"{request.method} {way.target} HTTP/1.1\r\nHost: {place.authority}\r\n".encode("ascii")
    ]
    for name, value in request.raw_headers:
        lowered = name.lower()
        if lowered not in dropped and lowered not in named:
            lines.append(b"%b: %b\r\n" % (name, value))
    lines.append(f"X-Request-Id: {request[REQUEST_ID]}\r\n".encode("ascii"))
    if way.secret is not None:
        lines.append(f"{SECRET_HEADER}: {way.secret}\r\n".encode("ascii"))
    if way.trace is not None:
        lines.extend(f"{name}: {value}\r\n".encode("ascii") for name, value in way.trace.items())
    lines.append(framing)
    lines.append(b"\r\n")
    return b"".join(lines)


async def _pass_back(request: web.Request, exchange: Exchange) -> web.StreamResponse:
    if exchange.status not in _STATUSES:
        raise UpstreamError("not a status of a model")
    headers = _answer_headers(exchange)
    length = exchange.length
    if length is not None and length <= _HELD_BYTES and request.method != "HEAD":
        return web.Response(status=exchange.status, headers=headers, body=await exchange.whole())
    answer = web.StreamResponse(status=exchange.status, headers=headers)
    answer.content_length = length
    await answer.prepare(request)
    while piece := await exchange.piece():
        await answer.write(piece)
    await answer.write_eof()
    return answer


def _answer_headers(exchange: Exchange) -> CIMultiDict[str]:
    given = exchange.headers
    headers = CIMultiDict(
        (name, given[raw].decode("latin-1")) for name, raw in _PASSED_RAW if raw in given
    )
    kind = given.get(b"content-type", b"").partition(b";")[0].strip().lower()
    headers["Content-Type"] = _JSON if kind == b"application/json" else _BYTES
    headers["X-Content-Type-Options"] = "nosniff"
    return headers
