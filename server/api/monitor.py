"""Monitoring over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from server import keys
from server.api import parameters
from server.api.replies import present, reply
from server.api.runs import run_of

if TYPE_CHECKING:
    from aiohttp import web


async def summary(request: web.Request) -> web.Response:
    """``GET /monitor/summary``: rate, errors, duration and service levels of a run."""
    environment = parameters.optional_environment(request, request.app[keys.SETTINGS])
    run = await run_of(request)
    shown = await request.app[keys.MONITOR].summary(run.run_id, environment)
    body = present(
        runId=run.run_id,
        environment=environment,
        **shown.summary.as_json(),
        updatedAt=datetime.fromtimestamp(shown.at, UTC),
    )
    return reply(body, headers={"X-Metrics-Source": shown.source})
