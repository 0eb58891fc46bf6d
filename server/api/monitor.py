"""Monitoring over HTTP."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from metrics import durations
from metrics.explain import explain
from metrics.reading import positive
from server import keys
from server.api import parameters
from server.api.replies import Remembered, present, reply
from server.api.runs import run_of
from server.errors import InvalidRequestError

if TYPE_CHECKING:
    from metrics.reading import Reading
    from server.pipeline.monitor import Course, Shown


REMEMBERED = web.AppKey("remembered_summaries", Remembered)

WINDOW_SECONDS = (30.0, 30 * 86400.0)
"""Windows that a summary or a series may be asked for."""

STEP_SECONDS = (1.0, 86400.0)

MAX_POINTS = 500
_USUAL_POINTS = 60
_USUAL_WINDOW = 3600.0
# Steps that people expect on an axis.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)


async def summary(request: web.Request) -> web.Response:
    """``GET /monitor/summary``: rate, errors, duration and service levels of a run."""
    environment = parameters.optional_environment(request, request.app[keys.SETTINGS])
    window = parameters.duration(request, "window", *WINDOW_SECONDS)
    explained = parameters.flag(request, "explain")
    run = await run_of(request)
    shown = await request.app[keys.MONITOR].summary(run.run_id, environment, window)
    if explained:
        body = _shown(run.run_id, environment, window, shown)
        found = explain(run.run_id, shown.summary, shown.standings, shown.asked, time.time())
        answer = reply({**body, "explain": found})
    else:
        answer = request.app[REMEMBERED].reply(
            request,
            (run.run_id, environment, window),
            shown,
            lambda: _shown(run.run_id, environment, window, shown),
        )
    answer.headers["X-Metrics-Source"] = shown.source
    return answer


async def series(request: web.Request) -> web.Response:
    """``GET /monitor/series``: the same over time, for charts."""
    environment = parameters.optional_environment(request, request.app[keys.SETTINGS])
    window = parameters.duration(request, "window", *WINDOW_SECONDS) or _USUAL_WINDOW
    step = parameters.duration(request, "step", *STEP_SECONDS) or _usual_step(window)
    if not 1 <= window / step <= MAX_POINTS:
        raise InvalidRequestError(
            "parameter_malformed", name="step", expected=f"window / step = 1-{MAX_POINTS}"
        )
    run = await run_of(request)
    course = await request.app[keys.MONITOR].course(run.run_id, environment, window, step)
    body = present(
        runId=run.run_id,
        environment=environment,
        window=durations.write(window),
        step=durations.write(step),
        rateWindow=durations.write(course.seconds),
        points=_points(course),
    )
    return reply(body, headers={"X-Metrics-Source": course.source})


def _usual_step(window: float) -> float:
    return float(next(step for step in _STEPS if step * _USUAL_POINTS >= window))


def _points(course: Course) -> list[dict[str, Any]]:
    return [_point(reading) for reading in course.readings]


def _point(reading: Reading) -> dict[str, Any]:
    """Return one moment; what is not known of it is left out."""
    at = datetime.fromtimestamp(reading.at, UTC)
    if reading.requests is None:
        return {"at": at}
    requests = positive(reading.requests)
    latencies = dict(zip(("p50Ms", "p95Ms", "p99Ms"), reading.durations, strict=False))
    return present(
        at=at,
        rps=requests / reading.seconds,
        errorsPercent=min(100 * positive(reading.errors) / requests, 100.0) if requests else 0.0,
        inFlight=positive(reading.in_progress),
        **{
            name: 1000 * seconds
            for name, seconds in latencies.items()
            if seconds is not None and requests
        },
    )


def _shown(
    run_id: str, environment: str | None, window: float | None, shown: Shown
) -> dict[str, Any]:
    return present(
        runId=run_id,
        environment=environment,
        window=None if window is None else durations.write(window),
        **shown.summary.as_json(),
        unreachable=[
            {"environment": one.environment, "replica": one.replica, "version": one.version}
            for one in shown.unread
        ],
        objectives=[standing.as_json() for standing in shown.standings],
        updatedAt=datetime.fromtimestamp(shown.at, UTC),
    )
