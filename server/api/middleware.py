"""The one middleware: request id, checks, errors as JSON, access log and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from multidict import istr

from server.api.cors import preflight_of_nothing
from server.api.errors import REFUSALS, NoRouteError, error_body, error_reply
from server.api.replies import reply
from server.api.security import SAFE_METHODS
from server.errors import (
    DeadlineError,
    ForbiddenError,
    InvalidRequestError,
    PersephoneError,
    TooLargeError,
)
from server.logs import one_line, request_id_var
from server.machine import explained

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler, Middleware

    from server.api.cors import AnswerHeaders
    from server.api.security import Guard
    from server.api.sessions import SessionStorage
    from server.messages import Language, Messages

    Observe = Callable[[str, str, int, float], None]
    Refused = Callable[[str], None]

logger = logging.getLogger(__name__)

UNMATCHED = "unmatched"
OTHER_METHOD = "OTHER"
CLIENT_GONE = 499

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
# How the templates of all routes of the Open Inference Protocol begin.
_PREDICTIONS = "/{env}/v2/"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_ID_HEADER = istr("X-Request-Id")

REQUEST_ID = web.RequestKey("request_id", str)
CODE = web.RequestKey("code", str)
"""Code of the error that was answered."""
ANSWERED_IN = web.RequestKey("answered_in", float)
"""Seconds until the answer began, of one that goes on for as long as its caller reads."""


def request_ids() -> Callable[[], str]:
    """Return a source of ids that are unique among all processes; cheap, since they are no secret."""
    prefix = secrets.token_hex(6)
    counter = itertools.count(1)
    return lambda: f"{prefix}-{next(counter):x}"


class Edge:
    """What every request goes through, before and after its handler.

    ``observe(route, method, status, seconds)`` is told of every answer; ``route`` is the path
    template of the route, or ``unmatched``. ``refused(code)`` is told of every request that is
    turned away for want of room, and of those that are sent too slowly or too large.
    """

    def __init__(
        self,
        guard: Guard,
        cors: AnswerHeaders,
        sessions: SessionStorage,
        messages: Messages,
        observe: Observe,
        refused: Refused,
    ) -> None:
        self.messages = messages
        self.refused = refused
        self.next_id = request_ids()
        self._guard = guard
        self._cors = cors
        self._sessions = sessions
        self._observe = observe
        self._under_way: set[int] = set()
        self._one_ended = asyncio.Event()

    async def finish(self, seconds: float) -> None:
        """Wait, but not for longer, until every change has ended that is under way now."""
        begun = set(self._under_way)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while begun & self._under_way:
                    self._one_ended.clear()
                    await self._one_ended.wait()

    def middleware(self) -> Middleware:
        """Return the middleware; it has to be the outermost one."""

        @web.middleware
        async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
            # uvloop's own clock counts whole milliseconds only.
            started = time.perf_counter()
            given = request.headers.get(_ID_HEADER)
            request_id = (
                given if given is not None and _REQUEST_ID.fullmatch(given) else self.next_id()
            )
            request[REQUEST_ID] = request_id
            request_id_var.set(request_id)
            status = CLIENT_GONE
            if request.method not in SAFE_METHODS:
                self._under_way.add(id(request))
            try:
                try:
                    self._guard.check(request)
                    self._sessions.attach(request)
                    response = await handler(request)
                    if self._sessions.is_changed(request):
                        await self._sessions.keep(request, response)
                except Exception as error:  # noqa: BLE001 - the one place where all errors end
                    response = self.answer(request, error)
                status = response.status
            finally:
                self._under_way.discard(id(request))
                self._one_ended.set()
                seconds = request.get(ANSWERED_IN) or time.perf_counter() - started
                self._record(request, status, seconds)
            return response

        return edge

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Complete the headers of an answer: its request's id, and CORS; streamed ones included."""
        headers = response.headers
        headers[_ID_HEADER] = self._id(request)
        self._cors.add(request, headers)

    def answer(self, request: web.Request, error: Exception) -> web.StreamResponse:
        """Return the JSON answer for an error.

        Re-raises where there is nobody left to answer, or half an answer is out already.
        """
        if _is_disconnected(request, error):
            raise error
        if request.writer.output_size > 0:
            if isinstance(error, PersephoneError):
                # As a model likes to, and as often: no fault of the service.
                logger.warning("an answer broke off: %s", error.code)
            else:
                logger.error("failed in the middle of its answer", exc_info=error)
            raise ConnectionError("the answer broke off") from error
        if isinstance(error, web.HTTPException):
            if error.status < 400:
                raise error
            return self._explain(request, error)
        if isinstance(error, PersephoneError):
            known = error
        elif isinstance(error, RequestPayloadError | HttpProcessingError):
            known = InvalidRequestError("body_malformed")
        elif isinstance(error, TimeoutError):
            logger.warning("%s: no answer in time", request.path, exc_info=error)
            known = DeadlineError("operation_timed_out")
        else:
            logger.error("unexpected error", exc_info=error)
            trouble = explained(error) if isinstance(error, OSError) else None
            known = trouble or PersephoneError("internal_error")
        return self._reply(request, known)

    def language(self, request: web.BaseRequest) -> Language:
        """Return the language of the request's answers."""
        return self.messages.language(request.headers.get("Accept-Language"))

    def _explain(self, request: web.Request, error: web.HTTPException) -> web.StreamResponse:
        """Say in our words what aiohttp refuses."""
        status = error.status
        if status == 404:
            if self._guard.is_preflight_of_ours(request):
                return preflight_of_nothing(request)
            return self._reply(
                request, NoRouteError("path_unknown", method=request.method, path=request.path)
            )
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            return self._reply(
                request, TooLargeError("body_too_large", limit=request.client_max_size)
            )
        if status == 403 and request.method == "OPTIONS":
            return self._reply(request, ForbiddenError("cors_preflight_refused"))
        headers = {}
        if isinstance(error, web.HTTPMethodNotAllowed):
            code = "method_not_allowed"
            allowed = ", ".join(sorted(error.allowed_methods))
            headers["Allow"] = allowed
            params = {"method": request.method, "allowed": allowed}
        elif status == 417:
            code, params = "expectation_unsupported", {"found": request.headers.get("Expect", "")}
        else:
            code, params = "request_refused", {"status": str(status)}
        request[CODE] = code
        message = self.messages.render(code, params, self.language(request))
        body = error_body(code, message, self._id(request), is_inference=_is_inference(request))
        return reply(body, status, headers)

    def _reply(self, request: web.Request, error: PersephoneError) -> web.StreamResponse:
        request[CODE] = error.code
        if isinstance(error, REFUSALS):
            self.refused(error.code)
        return error_reply(
            error,
            self.messages,
            self.language(request),
            self._id(request),
            is_inference=_is_inference(request),
        )

    def _id(self, request: web.Request) -> str:
        request_id: str | None = request.get(REQUEST_ID)
        if request_id is None:
            # Refused before the middleware ran.
            request_id = request[REQUEST_ID] = self.next_id()
        return request_id

    def _record(self, request: web.Request, status: int, seconds: float) -> None:
        method = request.method if request.method in _METHODS else OTHER_METHOD
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else UNMATCHED
        self._observe(route, method, status, seconds)
        # Polls and predictions that went well would drown everything else.
        level = logging.DEBUG
        is_frequent = method in _READS or route.startswith(_PREDICTIONS)
        if status >= 500:
            level = logging.WARNING
        elif status >= 400 or not is_frequent:
            level = logging.INFO
        if logger.isEnabledFor(level):
            fields: dict[str, object] = {
                "method": method,
                "path": one_line(request.path_qs, 300),
                "status": status,
                "durationMs": round(seconds * 1e3, 1),
                "client": request.remote,
            }
            text = "%(method)s %(path)s %(status)d %(durationMs)sms %(client)s"
            if CODE in request:
                fields["code"] = request[CODE]
                text = text.replace("%(status)d", "%(status)d %(code)s")
            logger.log(level, text, fields, extra={"fields": fields})


def _is_inference(request: web.Request) -> bool:
    """Whether the path belongs to the Open Inference Protocol: ``/v2/...`` or ``/{env}/v2/...``."""
    return "v2" in request.path.split("/", 3)[1:3]


def _is_disconnected(request: web.Request, error: Exception) -> bool:
    transport = request.transport
    return isinstance(error, ConnectionError) and (transport is None or transport.is_closing())
