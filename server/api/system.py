"""The service itself over HTTP: health, readiness, metrics, discovery, reference."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from typing import Any

from aiohttp import web

from metrics.instruments import CONTENT_TYPE
from metrics.objectives import exposition
from metrics.targets import discovery
from server import __version__, keys
from server.api.callers import refuse_strangers
from server.api.edge import CONNECTIONS
from server.api.replies import present, reply
from server.errors import NotFoundError, UnavailableError


async def healthz(_request: web.Request) -> web.Response:
    """``GET /healthz``: the process is alive."""
    return reply({"status": "ok", "version": __version__})


async def readyz(request: web.Request) -> web.Response:
    """``GET /readyz``: whether it can take work, and with what."""
    app = request.app
    snapshot = await app[keys.DEVICES].snapshot()
    up = app[keys.MONITOR].prometheus_is_up
    sandbox = app[keys.SANDBOX]
    body = {
        "status": "ready",
        "version": __version__,
        "sandbox": {"level": sandbox.level.value, "layers": sandbox.layers},
        "monitoring": present(source=app[keys.MONITOR].source, prometheusUp=up),
        "gpus": present(
            count=len(snapshot.devices),
            free=len(app[keys.DEVICES].free(snapshot)),
            problem=snapshot.problem,
        ),
        "inference": "open" if app[keys.SETTINGS].inference_is_open else "token",
        "environments": app[keys.SETTINGS].environments,
    }
    problems = await asyncio.to_thread(_problems, request)
    if problems:
        return reply({**body, "status": "not_ready", "problems": problems}, status=503)
    return reply(body)


def _problems(request: web.Request) -> list[str]:
    try:
        # Without a name of its own: polls run side by side, and the service may be killed.
        with tempfile.TemporaryFile(dir=request.app[keys.SETTINGS].data_dir, buffering=0) as probe:
            probe.write(b"x" * 4096)
    except OSError as error:
        return [f"data folder: {error.strerror}"]
    return []


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``: the service's own figures."""
    refuse_strangers(request)
    app = request.app
    instruments = app[keys.INSTRUMENTS]
    store = app[keys.STORE]
    numbers = Counter(
        (made.key.environment, str(app[keys.DEPLOY].phase(made)))
        for made in store.deployments.values()
    )
    # A driver that hangs must not make everything else invisible.
    snapshot = app[keys.DEVICES].latest()
    app[keys.GPU_TELEMETRY].show(snapshot, app[keys.DEVICES].leases())
    instruments.deployments(numbers)
    instruments.runs(len(store.runs))
    instruments.gpus(len(snapshot.devices), len(app[keys.DEVICES].free(snapshot)))
    instruments.backend("embedded", up=True)
    instruments.backend("prometheus", up=bool(app[keys.MONITOR].prometheus_is_up))
    instruments.scrape_targets(len(app[keys.SCRAPER].targets()))
    embedded = app[keys.SCRAPER].monitor
    instruments.history(embedded.crowd, unreadable=embedded.opened.rotten)
    await _measure(app)
    text = await asyncio.to_thread(instruments.text)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


async def _measure(app: web.Application) -> None:
    settings, usage, instruments = app[keys.SETTINGS], app[keys.USAGE], app[keys.INSTRUMENTS]
    disk = await usage.disk()
    instruments.disk(
        free_bytes=disk.free_bytes,
        kept_bytes=settings.kept_free(disk.total_bytes),
        stored_limit_bytes=disk.share_bytes(settings),
    )
    instruments.stored("artifacts", usage.artifact_bytes())
    instruments.stored("models", usage.model_bytes())
    instruments.connections(len(app[CONNECTIONS]))


async def discovery_of_replicas(request: web.Request) -> web.Response:
    """``GET /sd``: Prometheus' HTTP discovery of all replicas."""
    refuse_strangers(request)
    found: list[dict[str, Any]] = discovery(request.app[keys.SCRAPER].targets(), request.host)
    return reply(found)


async def replica_metrics(request: web.Request) -> web.Response:
    """``GET /sd/replicas/{target}/metrics``: one replica's figures, cleaned."""
    refuse_strangers(request)
    app = request.app
    scraper = app[keys.SCRAPER]
    target = scraper.find(request.match_info["target"])
    if target is None:
        raise NotFoundError("target_unknown")
    text = await scraper.fresh_text(target)
    if text is None:
        raise UnavailableError("target_silent")
    if target.is_gateway:
        promised = app[keys.OBJECTIVES].of(target.run_id, target.environment)
        text += exposition(promised) + app[keys.OBSERVING].text(target)
    return web.Response(text=text, headers={"Content-Type": CONTENT_TYPE})
