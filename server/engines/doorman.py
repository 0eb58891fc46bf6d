"""Answers on a deployment's own address while no replica is there to do it."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.messages import Messages

RETRY_AFTER_SECONDS = 2
_INFERENCE = re.compile(r"/v2/models/[^/]+/infer")


def make_doorman(messages: Messages, refused: Callable[[], None]) -> web.Server:
    """Return a server whose every answer is 503.

    ``refused`` is called for each inference that was turned away: those count as errors.
    """

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.method == "POST" and _INFERENCE.fullmatch(request.path):
            refused()
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

    return web.Server(answer)
