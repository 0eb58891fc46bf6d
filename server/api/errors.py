"""The one table error class -> HTTP status, with the JSON body that every error has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.api.replies import reply
from server.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    PersephoneError,
    StepFailedError,
    StorageFullError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedTypeError,
)
from server.pipeline.places import DisplacedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from server.messages import Messages


class MisdirectedError(ForbiddenError):
    """The request was meant for another host."""


class SlowRequestError(DeadlineError):
    """The caller sends its request too slowly."""


class NoRouteError(NotFoundError):
    """The API has no such path."""


STATUS: Mapping[type[PersephoneError], int] = {
    PersephoneError: 500,
    InvalidRequestError: 400,
    UnsupportedTypeError: 415,
    ForbiddenError: 403,
    UnauthenticatedError: 401,
    MisdirectedError: 421,
    NotFoundError: 404,
    ConflictError: 409,
    TooLargeError: 413,
    BusyError: 429,
    UnavailableError: 503,
    DeadlineError: 504,
    SlowRequestError: 408,
    DisplacedError: 408,
    StorageFullError: 507,
    StepFailedError: 422,
}

# Turned away for want of room, for sending too slowly or too much, or for coming from elsewhere.
REFUSALS = (
    *(BusyError, StorageFullError, TooLargeError, SlowRequestError, DisplacedError),
    ForbiddenError,
)

RETRY_AFTER_SECONDS: Mapping[int, int] = {429: 10, 503: 5}

# A caller that sends badly or slowly is not worth another request on the same connection.
CLOSING = frozenset({408})


def status_of(kind: type[PersephoneError]) -> int:
    """Return the HTTP status of an error class: its own, or its nearest parent's."""
    return next(STATUS[parent] for parent in kind.__mro__ if parent in STATUS)


def error_body(
    code: str, message: str, request_id: str, *, is_inference: bool = False
) -> dict[str, Any]:
    """Return the JSON object of an error; the inference protocol wants the text in ``error`` too."""
    body = {"message": message, "code": code, "requestId": request_id}
    return {"error": message, **body} if is_inference else body


def error_reply(
    error: PersephoneError,
    messages: Messages,
    language: str,
    request_id: str,
    *,
    is_inference: bool = False,
) -> web.Response:
    """Answer an error that we raised on purpose."""
    status = status_of(type(error))
    message = messages.render(error.code, error.params, language)
    headers = {}
    if status in RETRY_AFTER_SECONDS:
        seconds = error.params.get("retry_after_seconds", RETRY_AFTER_SECONDS[status])
        headers["Retry-After"] = str(max(1, round(seconds)))
    elif status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="persephone"'
    body = error_body(error.code, message, request_id, is_inference=is_inference)
    response = reply(body, status, headers)
    if status in CLOSING:
        response.force_close()
    return response
