"""What helps whoever helps: a run's passport, and everything about it in one file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from server import keys
from server.api.deploy import shown as deployment_shown
from server.api.events import all_shown
from server.api.logs import text_lines
from server.api.prepare import shown as preparation_shown
from server.api.replies import dumps, tagged
from server.api.runs import run_in_path
from server.api.runs import shown as run_shown
from server.errors import NotFoundError
from server.pipeline.bundle import environment_shown, settings_shown, versions, zipped
from server.pipeline.turns import Turns

if TYPE_CHECKING:
    from server.records import Run

BUNDLES_AT_ONCE = 2
"""Each holds its files twice in memory, and a thread that others need as well."""
BUNDLES = web.AppKey("bundles", Turns)


async def passport(request: web.Request) -> web.Response:
    """``GET /runs/{runId}/passport``: what was proven about the model, as it is kept."""
    run = await run_in_path(request)
    made = request.app[keys.STORE].preparation(run.run_id).passport
    if made is None:
        raise NotFoundError("passport_absent")
    return tagged(request, dumps(made))


async def bundle(request: web.Request) -> web.Response:
    """``GET /runs/{runId}/support-bundle``: a zip of what is known of a run, without secrets."""
    run = await run_in_path(request)
    async with request.app[BUNDLES].place(run.owner):
        # It may have been deleted while others were served.
        run = request.app[keys.STORE].run_of(run.run_id, run.owner)
        return await _bundle(request, run)


async def _bundle(request: web.Request, run: Run) -> web.Response:
    store = request.app[keys.STORE]
    events = await store.events.page(run.run_id, 0)
    lines = await request.app[keys.LOGS].tail(run.run_id)
    made = store.preparation(run.run_id)
    files = {
        "run.json": dumps(run_shown(request, run)),
        "preparation.json": dumps(preparation_shown(request, made)),
        "deployments.json": dumps(_deployments(request, run)),
        "timeline.json": dumps(await all_shown(request, events)),
        "logs.txt": text_lines(lines),
        "settings.json": dumps(settings_shown(request.app[keys.SETTINGS])),
        "versions.json": dumps(await asyncio.to_thread(versions, request.app[keys.SANDBOX])),
    }
    if made.passport is not None:
        files["passport.json"] = dumps(made.passport)
        files["lock.txt"] = str(made.passport.get("lock", "")).encode()
        settings = request.app[keys.SETTINGS]
        files["environment.json"] = dumps(environment_shown(made.passport, settings))
    name = f"persephone-{run.run_id}.zip"
    headers = {
        "Content-Type": "application/zip",
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return web.Response(body=await asyncio.to_thread(zipped, files), headers=headers)


def _deployments(request: web.Request, run: Run) -> list[dict[str, object]]:
    """Return the deployments of a run, and those that it still serves though another is wanted."""
    return [
        {
            **deployment_shown(request, run, made.key.environment, made),
            "runId": made.run_id,
            "servingRunId": made.serving_run_id,
        }
        for made in request.app[keys.STORE].deployments_of(run.run_id)
    ]
