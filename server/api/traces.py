"""A span around every request of the API, as a part of its caller's trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from server.api.middleware import REQUEST_ID, UNMATCHED
from server.logs import deployment_id_var, run_id_var, trace_id_var

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware
    from opentelemetry.trace import Span

    from server.tracing import Attributes, Tracing

# Asked every few seconds by machines, and of no interest one by one.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/sd", "/sd/replicas/{target}/metrics"})


def traced(tracing: Tracing) -> Middleware:
    """Return the middleware; it has to be the outermost one, as it wants the final status."""

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = UNMATCHED if resource is None else resource.canonical
        if route in _QUIET:
            return await handler(request)
        attributes: Attributes = {
            "http.request.method": request.method,
            "http.route": route,
            "url.path": request.path,
        }
        with tracing.span(
            f"{request.method} {route}", "server", attributes=attributes, caller=request.headers
        ) as span:
            trace_id_var.set(tracing.trace_id(span))
            try:
                response = await handler(request)
            finally:
                _identify(request, span)
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= 500:
                tracing.fail(span)
            return response

    return around


def _identify(request: web.Request, span: Span) -> None:
    ids = {
        "persephone.request_id": request.get(REQUEST_ID, ""),
        "persephone.run_id": run_id_var.get(),
        "persephone.deployment_id": deployment_id_var.get(),
    }
    span.set_attributes({name: value for name, value in ids.items() if value})
