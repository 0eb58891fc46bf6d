"""How a failure is answered: its status and its body, the one table of both."""

from __future__ import annotations

import logging
import re
import secrets
from typing import Any, Dict, Mapping, Optional

import orjson
from aiohttp import web

from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.messages import Messages

logger = logging.getLogger(__name__)

SERVER = "persephone"
REQUEST_ID = "X-Request-Id"

_STATUSES = {
    "model_raised": 500,
    "output_missing": 500,
    "output_datatype_unsupported": 500,
    # The prediction was made; what cannot be had is its form in JSON.
    "output_not_finite": 422,
    "replica_loading": 503,
    "model_out_of_memory": 503,
    "replica_overloaded": 503,
    "replica_restarting": 503,
    "prediction_timed_out": 504,
}
_RETRY_SECONDS = "1"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A request is answered with an error: its status, code, parameters and extra headers."""

    def __init__(
        self, status: int, code: str, *, headers: Optional[Mapping[str, str]] = None, **params: Any
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.params = params
        self.headers = dict(headers or {})


def refusal_of(error: Exception) -> Refusal:
    """Turn whatever ended a request into its answer; a fault of our own is logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BadInputError):
        return Refusal(400, error.code, **error.params)
    if isinstance(error, ModelFailure):
        headers = {}
        status = _STATUSES.get(error.code, 500)
        if status == 503:
            headers["Retry-After"] = _RETRY_SECONDS
        return Refusal(
            status, error.code, headers=headers, **{"evidence": error.evidence, **error.params}
        )
    if isinstance(error, MemoryError):
        return Refusal(503, "model_out_of_memory", headers={"Retry-After": _RETRY_SECONDS})
    logger.error("a request was not handled", exc_info=error)
    return Refusal(500, "internal_error")


def given_id(request: web.BaseRequest) -> Optional[str]:
    """Return the id that the caller gave its request, if it is one."""
    given = request.headers.get(REQUEST_ID)
    return given if given is not None and _REQUEST_ID.fullmatch(given) else None


class Answers:
    """Makes the responses of one process."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages

    def json(
        self, body: bytes, *, status: int = 200, headers: Optional[Mapping[str, str]] = None
    ) -> web.Response:
        """Answer with a body that is JSON already."""
        merged: Dict[str, str] = {"Content-Type": "application/json", "Server": SERVER}
        merged.update(headers or {})
        return web.Response(status=status, body=body, headers=merged)

    def refuse(self, request: Optional[web.BaseRequest], refusal: Refusal) -> web.Response:
        """Answer with an error in the reader's language.

        ``request`` is None where no head could be read.
        """
        language = None
        request_id = secrets.token_hex(8)
        if request is not None:
            language = request.headers.get("Accept-Language")
            request_id = given_id(request) or request_id
        text = self._messages.text(refusal.code, refusal.params, language)
        body = {"error": text, "message": text, "code": refusal.code, "requestId": request_id}
        return self.json(
            orjson.dumps(body),
            status=refusal.status,
            headers={REQUEST_ID: request_id, **refusal.headers},
        )
