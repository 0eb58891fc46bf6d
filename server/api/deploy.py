"""Deployment over HTTP: start, status, stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server import keys
from server.api import parameters
from server.api.addresses import endpoint, gateway
from server.api.prepare import rendered
from server.api.replies import dumps, present, reply, tagged
from server.api.runs import run_of
from server.logs import deployment_id_var
from server.records import Text
from server.states import Phase, Wanted

if TYPE_CHECKING:
    from aiohttp import web

    from server.records import Deployment, Run


async def start(request: web.Request) -> web.Response:
    """``POST /deploy/start``: roll the run out, or show the roll-out under way."""
    environment = parameters.environment(request, request.app[keys.SETTINGS])
    run = await run_of(request)
    replicas = parameters.replicas(request)
    made = await request.app[keys.DEPLOY].start(run, environment, replicas)
    return reply(shown(request, run, environment, made))


async def status(request: web.Request) -> web.Response:
    """``GET /deploy/status``."""
    environment = parameters.environment(request, request.app[keys.SETTINGS])
    run = await run_of(request)
    made = request.app[keys.DEPLOY].find(run, environment)
    return tagged(request, dumps(shown(request, run, environment, made)))


async def stop(request: web.Request) -> web.Response:
    """``POST /deploy/stop``: take the run's deployment down."""
    environment = parameters.environment(request, request.app[keys.SETTINGS])
    run = await run_of(request)
    made = await request.app[keys.DEPLOY].stop(run, environment)
    return reply(shown(request, run, environment, made))


def shown(
    request: web.Request, run: Run, environment: str, made: Deployment | None
) -> dict[str, Any]:
    """Return a run's deployment as JSON; None is one that never was."""
    sequence = request.app[keys.STORE].events.newest(run.run_id)
    if made is None:
        text = _absence(request, run, environment)
        return present(
            runId=run.run_id,
            environment=environment,
            phase=Phase.PENDING,
            message=rendered(request, text),
            code=text.code,
            sequence=sequence,
        )
    deployment_id_var.set(made.id)
    up = made.wanted is Wanted.UP
    phase = request.app[keys.DEPLOY].phase(made)
    seen = request.app[keys.RECONCILER].seen(made)
    text = _text(made, phase, seen.serving)
    replicas = request.app[keys.RECONCILER].replicas(made.key)
    if phase is Phase.SUCCEEDED and any(replica.port != made.port for replica in replicas):
        text = Text(code="port_taken", params={"port": made.port})
    elif phase is Phase.SUCCEEDED and seen.is_short:
        text = Text(
            code="deploy_short",
            params={"version": made.version, "ready": len(replicas), "wanted": made.replicas},
        )
    message = rendered(request, text)
    if phase is Phase.FAILED and seen.serving is not None:
        older = Text(code="deploy_older_serves", params={"version": seen.serving})
        message = f"{message} {rendered(request, older)}"
    return present(
        runId=run.run_id,
        environment=environment,
        phase=phase,
        message=message,
        code=text.code,
        version=str(made.version),
        servingVersion=None if seen.serving is None else str(seen.serving),
        replicas=made.replicas if up else None,
        readyReplicas=len(replicas) if up else None,
        endpoint=endpoint(request, made.port) if up and made.port else None,
        gateway=gateway(request, environment) if up else None,
        sequence=sequence,
        startedAt=made.wanted_at,
        updatedAt=max(made.wanted_at, made.seen_at or made.wanted_at),
    )


def _absence(request: web.Request, run: Run, environment: str) -> Text:
    key = request.app[keys.DEPLOY].key(run, environment)
    other = request.app[keys.STORE].deployments.get(key)
    if other is not None:
        return Text(code="deploy_replaced", params={"version": other.version})
    return Text(code="deploy_not_started", params={"environment": environment})


def _text(made: Deployment, phase: Phase, serving: int | None) -> Text:
    match phase:
        case Phase.PENDING:
            return Text(code="deploy_stopped", params={"version": made.version})
        case Phase.SUCCEEDED:
            return Text(code="deploy_serving", params={"version": made.version})
        case Phase.FAILED:
            return made.message or Text(code="step_crashed")
        case Phase.RUNNING:
            if made.message is not None and made.serving_version == made.version:
                return Text(code="deploy_restarting", params={"version": made.version})
            if serving is not None:
                return Text(
                    code="deploy_replacing", params={"version": made.version, "older": serving}
                )
            return Text(code="deploy_starting", params={"version": made.version})
