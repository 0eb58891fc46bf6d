"""Service level objectives over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from metrics import durations
from server import keys, promises
from server.api import parameters
from server.api.bodies import read_body
from server.api.replies import reply
from server.api.runs import run_in_path
from server.errors import InvalidRequestError
from server.records import ObjectiveOverride

if TYPE_CHECKING:
    from aiohttp import web

    from server.records import Run

_BODY_BYTES = 16 * 1024
_NUMBERS = {
    "availability": ("availability", promises.PERCENT),
    "latencyThresholdMs": ("latency_seconds", promises.LATENCY_MS),
    "latencyShare": ("latency_share", promises.PERCENT),
}
_EXPECTED = ", ".join((*_NUMBERS, "window"))


async def show(request: web.Request) -> web.Response:
    """``GET /runs/{runId}/slo``: what the run promises in each environment."""
    return _shown(request, await run_in_path(request))


async def replace(request: web.Request) -> web.Response:
    """``PUT /runs/{runId}/slo``: promise something else than the settings say."""
    run = await run_in_path(request)
    promised = promises_of(await read_body(request, _BODY_BYTES))
    for environment in promised:
        parameters.checked_environment(environment, request.app[keys.SETTINGS])
    return await _promise(request, run, promised)


async def reset(request: web.Request) -> web.Response:
    """``DELETE /runs/{runId}/slo``: go back to what the settings say."""
    return await _promise(request, await run_in_path(request), {})


async def _promise(
    request: web.Request, run: Run, promised: dict[str, ObjectiveOverride]
) -> web.Response:
    await request.app[keys.OBJECTIVES].promise(run.run_id, promised)
    request.app[keys.MONITOR].reconsider(run.run_id)
    return _shown(request, run)


def _shown(request: web.Request, run: Run) -> web.Response:
    objectives = request.app[keys.OBJECTIVES]
    own = objectives.promised(run.run_id)
    found = {
        environment: {
            "availability": promised.availability,
            "latencyThresholdMs": round(1000 * promised.latency_seconds, 3),
            "latencyShare": promised.latency_share,
            "window": durations.write(promised.seconds),
            "source": "run" if environment in own else "settings",
        }
        for environment, promised in objectives.all_of(run.run_id).items()
    }
    return reply({"runId": run.run_id, "objectives": found})


def promises_of(body: bytes) -> dict[str, ObjectiveOverride]:
    """Read what is promised, by environment; whether those are known is not looked at.

    Raises:
        InvalidRequestError: ``objectives_malformed``: says what and where.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _malformed("body", "JSON") from None
    found = document.get("objectives") if isinstance(document, dict) else None
    if not isinstance(found, dict) or len(document) != 1:
        raise _malformed("objectives", '{"prod": {"availability": 99.9}}')
    return {environment: _promised(environment, fields) for environment, fields in found.items()}


def _promised(environment: str, fields: Any) -> ObjectiveOverride:
    if not isinstance(fields, dict):
        raise _malformed(environment, "{…}")
    values: dict[str, float] = {}
    for name, value in fields.items():
        place = f"{environment}.{name}"
        if name == "window":
            values["seconds"] = _window(place, value)
        elif name in _NUMBERS:
            field, (low, high) = _NUMBERS[name]
            if type(value) not in (int, float) or not low <= value <= high:
                raise _malformed(place, f"{low:g}-{high:g}")
            values[field] = float(value)
        else:
            raise _malformed(place, _EXPECTED)
    if "latency_seconds" in values:
        values["latency_seconds"] /= 1000
    return ObjectiveOverride(**values)


def _window(place: str, value: Any) -> float:
    try:
        return promises.window(str(value))
    except ValueError:
        low, high = map(durations.write, promises.WINDOW_SECONDS)
        raise _malformed(place, f'"{low}"-"{high}"') from None


def _malformed(field: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError("objectives_malformed", field=field, expected=expected)
