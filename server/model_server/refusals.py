"""How a failure is answered: its status and its body, the one table of both."""

from __future__ import annotations

import logging
import re
import secrets
from typing import Any, Mapping, Optional

import orjson

from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.messages import Messages
from server.model_server.requests import Head, Response

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"

_STATUSES = {
    "model_raised": 500,
    "bundle_predict_raised": 500,
    "bundle_outputs_not_mapping": 500,
    "bundle_output_undeclared": 500,
    "bundle_output_missing": 500,
    "bundle_output_datatype": 500,
    "bundle_output_shape": 500,
    "mlflow_predict_raised": 500,
    "mlflow_output_differs": 500,
    "output_missing": 500,
    "output_datatype_unsupported": 500,
    # The prediction was made; what cannot be had is its form in JSON.
    "output_not_finite": 422,
    "content_encoding_unsupported": 415,
    "request_too_large": 413,
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
        return Refusal(_STATUSES.get(error.code, 400), error.code, **error.params)
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


def given_id(head: Head) -> Optional[str]:
    """Return the id that the caller gave its request, if it is one."""
    given = head.header(b"x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else None


class Answers:
    """Makes the error responses of one process."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages

    def refuse(self, head: Optional[Head], refusal: Refusal) -> Response:
        """Answer with an error in the reader's language.

        ``head`` is None where none could be read.
        """
        language = None
        request_id = secrets.token_hex(8)
        if head is not None:
            language = head.header(b"accept-language")
            request_id = given_id(head) or request_id
        text = self._messages.text(refusal.code, refusal.params, language)
        body = {"error": text, "message": text, "code": refusal.code, "requestId": request_id}
        return Response(
            refusal.status,
            (orjson.dumps(body),),
            headers={REQUEST_ID: request_id, **refusal.headers},
        )
