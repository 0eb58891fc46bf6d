"""Joins the parts of the edge: one call after the routes, one for the runner."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from aiohttp import web

from server.api.connections import EXHAUSTED, EXHAUSTED_FOR_ADDRESS, Connections
from server.api.cors import AnswerHeaders, enable_preflights
from server.api.middleware import Edge
from server.api.protocol import EdgeRunner
from server.api.security import Guard
from server.api.sessions import STORAGE, SessionStorage
from server.pipeline import quotas

if TYPE_CHECKING:
    from server.api.middleware import Observe, Refused
    from server.api.sessions import SessionStore
    from server.messages import Language, Messages
    from server.settings import Settings

REFUSAL_CODES = (
    *(*quotas.CODES, EXHAUSTED, EXHAUSTED_FOR_ADDRESS, "disk_full"),
    *("connection_silent", "headers_too_slow", "body_too_slow"),
    *("headers_too_large", "body_too_large", "artifact_too_large", "form_too_large"),
    *("http_malformed", "host_not_allowed", "origin_not_allowed"),
)
"""Codes by which refusals are counted."""

EDGE = web.AppKey("edge", Edge)
CONNECTIONS = web.AppKey("connections", Connections)


def _nobody(_code: str) -> None:
    """Is told of refusals where nobody counts them."""


def setup_edge(
    app: web.Application,
    settings: Settings,
    messages: Messages,
    session_store: SessionStore,
    observe: Observe,
    refused: Refused = _nobody,
) -> Edge:
    """Put ids, checks, errors, sessions and CORS around all routes of ``app``.

    To be called once, after the routes are added: CORS is enabled for the ones that exist.
    """
    # aiohttp-session keeps its things in the request under plain strings.
    warnings.filterwarnings(
        "ignore", category=web.NotAppKeyWarning, module=r"aiohttp_session|server\.api\.sessions"
    )
    storage = SessionStorage(settings, session_store)
    edge = Edge(Guard(settings), AnswerHeaders(settings), storage, messages, observe, refused)
    app[EDGE] = edge
    app[CONNECTIONS] = Connections(
        settings.max_connections, settings.max_connections_per_address, refused
    )
    app[STORAGE] = storage
    app.middlewares.append(edge.middleware())
    enable_preflights(app, settings)
    app.on_response_prepare.append(edge.on_prepare)
    return edge


def make_runner(app: web.Application, **options: Any) -> EdgeRunner:
    """Return the runner that serves ``app`` with deadlines and JSON errors below the application."""
    return EdgeRunner(app, app[EDGE], app[CONNECTIONS], **options)


def language_of(request: web.Request) -> Language:
    """Return the language of the request's answers, ``ru`` or ``en``."""
    return request.app[EDGE].language(request)
