"""CORS with credentials for the configured origins: on every answer, errors of any kind included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp_cors
from aiohttp import web
from multidict import CIMultiDict, istr

if TYPE_CHECKING:
    from server.settings import Settings

EXPOSED_HEADERS = ("ETag", "Retry-After", "X-Metrics-Source", "X-Request-Id")
PREFLIGHT_SECONDS = 600

_ALLOW_ORIGIN = istr("Access-Control-Allow-Origin")
_VARY = istr("Vary")


def enable_preflights(app: web.Application, settings: Settings) -> None:
    """Answer the preflights of every route that ``app`` has by now."""
    options = aiohttp_cors.ResourceOptions(
        allow_credentials=True, allow_headers="*", allow_methods="*", max_age=PREFLIGHT_SECONDS
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(settings.cors_origins, options))
    # Its own hook for the other answers knows routes only, so that a page could not read that a
    # path or method is wrong; AnswerHeaders does what it did, at a tenth of the price.
    app.on_response_prepare.pop()
    for resource in list(app.router.resources()):
        cors.add(resource)


class AnswerHeaders:
    """The CORS headers of all answers that are no preflights."""

    def __init__(self, settings: Settings) -> None:
        self._of_origin = {
            origin: CIMultiDict(
                {
                    _VARY: "Origin",
                    _ALLOW_ORIGIN: origin,
                    istr("Access-Control-Allow-Credentials"): "true",
                    istr("Access-Control-Expose-Headers"): ",".join(EXPOSED_HEADERS),
                }
            )
            for origin in settings.cors_origins
        }

    def add(self, request: web.Request, headers: CIMultiDict[str]) -> None:
        """Let the page that asked read the answer, if it is one of ours."""
        origin = request.headers.get("Origin")
        allowed = None if origin is None else self._of_origin.get(origin)
        if allowed is None or _ALLOW_ORIGIN in headers:
            headers.add(_VARY, "Origin")
        else:
            headers.extend(allowed)


def preflight_of_nothing(request: web.Request) -> web.Response:
    """Answer the preflight for a path that is not there, so that the page may read its 404."""
    headers = {"Access-Control-Allow-Methods": request.headers["Access-Control-Request-Method"]}
    wanted = request.headers.get("Access-Control-Request-Headers")
    if wanted:
        headers["Access-Control-Allow-Headers"] = wanted
    return web.Response(status=204, headers=headers)
