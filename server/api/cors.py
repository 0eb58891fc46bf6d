"""CORS with credentials for the configured origins: on every answer, errors of any kind included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp_cors
from aiohttp import web
from aiohttp_cors.urldispatcher_router_adapter import ResourcesUrlDispatcherRouterAdapter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from server.settings import Settings

EXPOSED_HEADERS = ("Retry-After", "X-Metrics-Source", "X-Request-Id")
PREFLIGHT_SECONDS = 600

_EXPOSE = ",".join(EXPOSED_HEADERS)


def enable_cors(app: web.Application, settings: Settings) -> None:
    """Let pages of the configured origins use every route that ``app`` has by now.

    aiohttp-cors answers the preflights. The headers of all other answers are set here, since it
    knows routes only: an unknown path or a wrong method would be an error that the page may not
    read.
    """
    options = aiohttp_cors.ResourceOptions(
        allow_credentials=True, allow_headers="*", allow_methods="*", max_age=PREFLIGHT_SECONDS
    )
    defaults = dict.fromkeys(settings.cors_origins, options)
    adapter = _PreflightsOnly(app.router, defaults)
    cors = aiohttp_cors.CorsConfig(app, defaults=defaults, router_adapter=adapter)
    for resource in list(app.router.resources()):
        cors.add(resource)
    app.on_response_prepare.append(_answers(frozenset(settings.cors_origins)))


class _PreflightsOnly(ResourcesUrlDispatcherRouterAdapter):  # type: ignore[misc]
    def is_cors_enabled_on_request(self, request: web.Request) -> bool:
        """Leave answers alone that are no preflights: it would look up seven tables for each."""
        return False


def preflight_of_nothing(request: web.Request) -> web.Response:
    """Answer the preflight for a path that is not there, so that the page may read its 404."""
    headers = {"Access-Control-Allow-Methods": request.headers["Access-Control-Request-Method"]}
    wanted = request.headers.get("Access-Control-Request-Headers")
    if wanted:
        headers["Access-Control-Allow-Headers"] = wanted
    return web.Response(status=204, headers=headers)


def _answers(
    origins: frozenset[str],
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def allow(request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        headers.add("Vary", "Origin")
        origin = request.headers.get("Origin")
        if origin in origins and "Access-Control-Allow-Origin" not in headers:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = _EXPOSE

    return allow
