"""Runs over HTTP: which run a request means, the list, deletion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server import keys
from server.api import parameters
from server.api.callers import owner_of
from server.api.replies import dumps, present, reply, tagged

if TYPE_CHECKING:
    from aiohttp import web

    from server.records import Run


async def run_of(request: web.Request) -> Run:
    """Return the caller's run that the parameter ``runId`` names.

    Raises:
        InvalidRequestError: the parameter is missing or malformed.
        NotFoundError: there is no such run for this caller.
    """
    run_id = parameters.run_id(request)
    return request.app[keys.STORE].run_of(run_id, await owner_of(request))


async def run_in_path(request: web.Request) -> Run:
    """Return the caller's run that the path names.

    Raises:
        InvalidRequestError, NotFoundError: as ``run_of``.
    """
    run_id = parameters.checked_run_id(request.match_info["runId"])
    return request.app[keys.STORE].run_of(run_id, await owner_of(request))


async def listing(request: web.Request) -> web.Response:
    """``GET /runs``: the caller's runs, newest first."""
    after = parameters.optional(request, "after")
    if after is not None:
        after = parameters.checked_run_id(after)
    owner = await owner_of(request)
    page, following = request.app[keys.RUNS].page(owner, after)
    runs = [shown(request, run) for run in page]
    quota = request.app[keys.USAGE].shown(owner or "")
    return tagged(request, dumps(present(runs=runs, next=following, quota=quota)))


def shown(request: web.Request, run: Run) -> dict[str, Any]:
    """Return a run as the list shows it."""
    store = request.app[keys.STORE]
    deployments = {
        made.key.environment: request.app[keys.DEPLOY].phase(made)
        for made in store.deployments_of(run.run_id)
        if made.run_id == run.run_id
    }
    return {
        "runId": run.run_id,
        "model": run.model,
        "fileName": run.file_name,
        "sizeBytes": run.size_bytes,
        "sha256": run.digest,
        "createdAt": run.created_at,
        "preparation": store.preparation(run.run_id).phase,
        "deployments": deployments,
        "sequence": store.events.newest(run.run_id),
    }


async def delete(request: web.Request) -> web.Response:
    """``DELETE /runs/{runId}``: take a run away with everything it had."""
    run = await run_in_path(request)
    await request.app[keys.RUNS].delete(run)
    return reply({"runId": run.run_id})
