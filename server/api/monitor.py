"""Monitoring over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from server import keys
from server.api import parameters
from server.api.replies import Remembered, present
from server.api.runs import run_of

if TYPE_CHECKING:
    from server.pipeline.monitor import Shown


REMEMBERED = web.AppKey("remembered_summaries", Remembered)


async def summary(request: web.Request) -> web.Response:
    """``GET /monitor/summary``: rate, errors, duration and service levels of a run."""
    environment = parameters.optional_environment(request, request.app[keys.SETTINGS])
    run = await run_of(request)
    shown = await request.app[keys.MONITOR].summary(run.run_id, environment)
    answer = request.app[REMEMBERED].reply(
        (run.run_id, environment), shown, lambda: _shown(run.run_id, environment, shown)
    )
    answer.headers["X-Metrics-Source"] = shown.source
    return answer


def _shown(run_id: str, environment: str | None, shown: Shown) -> dict[str, Any]:
    return present(
        runId=run_id,
        environment=environment,
        **shown.summary.as_json(),
        updatedAt=datetime.fromtimestamp(shown.at, UTC),
    )
