"""Joins the parts of the edge: one call after the routes, one for the runner."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from aiohttp import web

from server.api.cors import AnswerHeaders, enable_preflights
from server.api.middleware import Edge
from server.api.protocol import EdgeRunner
from server.api.security import Guard
from server.api.sessions import STORAGE, SessionStorage

if TYPE_CHECKING:
    from server.api.middleware import Observe
    from server.api.sessions import SessionStore
    from server.messages import Language, Messages
    from server.settings import Settings

EDGE = web.AppKey("edge", Edge)


def setup_edge(
    app: web.Application,
    settings: Settings,
    messages: Messages,
    session_store: SessionStore,
    observe: Observe,
) -> Edge:
    """Put ids, checks, errors, sessions and CORS around all routes of ``app``.

    To be called once, after the routes are added: CORS is enabled for the ones that exist.
    """
    # aiohttp-session keeps its things in the request under plain strings.
    warnings.filterwarnings(
        "ignore", category=web.NotAppKeyWarning, module=r"aiohttp_session|server\.api\.sessions"
    )
    storage = SessionStorage(settings, session_store)
    edge = Edge(Guard(settings), AnswerHeaders(settings), storage, messages, observe)
    app[EDGE] = edge
    app[STORAGE] = storage
    app.middlewares.append(edge.middleware())
    enable_preflights(app, settings)
    app.on_response_prepare.append(edge.on_prepare)
    return edge


def make_runner(app: web.Application, **options: Any) -> EdgeRunner:
    """Return the runner that serves ``app`` with deadlines and JSON errors below the application."""
    return EdgeRunner(app, app[EDGE], **options)


def language_of(request: web.Request) -> Language:
    """Return the language of the request's answers, ``ru`` or ``en``."""
    return request.app[EDGE].language(request)
