"""The service itself over HTTP: health, readiness, metrics, discovery, reference."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from metrics.instruments import CONTENT_TYPE
from metrics.targets import discovery
from server import __version__, keys
from server.api.replies import present, reply
from server.errors import ForbiddenError, NotFoundError, UnavailableError
from server.settings import is_loopback_host


async def healthz(_request: web.Request) -> web.Response:
    """``GET /healthz``: the process is alive."""
    return reply({"status": "ok", "version": __version__})


async def readyz(request: web.Request) -> web.Response:
    """``GET /readyz``: whether it can take work, and with what."""
    app = request.app
    snapshot = await app[keys.DEVICES].snapshot()
    up = app[keys.MONITOR].prometheus_is_up
    body = {
        "status": "ready",
        "version": __version__,
        "sandbox": app[keys.SANDBOX].name,
        "monitoring": present(source=app[keys.MONITOR].source, prometheusUp=up),
        "gpus": present(
            count=len(snapshot.devices),
            free=len(app[keys.DEVICES].free(snapshot)),
            problem=snapshot.problem,
        ),
        "inference": "open" if app[keys.SETTINGS].inference_is_open else "session",
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


def _refuse_strangers(request: web.Request) -> None:
    """Raise ForbiddenError unless the caller is on this machine: run ids are secrets."""
    settings = request.app[keys.SETTINGS]
    is_near = settings.is_loopback or is_loopback_host(request.remote or "")
    # Callers that come through a proxy of this machine look near, but not by the name they use.
    if is_near and (not settings.is_published or is_loopback_host(_called_by(request))):
        return
    raise ForbiddenError("only_from_this_machine")


def _called_by(request: web.Request) -> str:
    """Return the Host header without its port; of the request line it would be unchecked."""
    return urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``: the service's own figures."""
    _refuse_strangers(request)
    app = request.app
    instruments = app[keys.INSTRUMENTS]
    store = app[keys.STORE]
    numbers = Counter(
        (made.key.environment, str(app[keys.DEPLOY].phase(made)))
        for made in store.deployments.values()
    )
    snapshot = await app[keys.DEVICES].snapshot()
    instruments.deployments(numbers)
    instruments.runs(len(store.runs))
    instruments.gpus(len(snapshot.devices), len(app[keys.DEVICES].free(snapshot)))
    instruments.backend("embedded", up=True)
    instruments.backend("prometheus", up=bool(app[keys.MONITOR].prometheus_is_up))
    instruments.scrape_targets(len(app[keys.SCRAPER].targets()))
    text = await asyncio.to_thread(instruments.text)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


async def discovery_of_replicas(request: web.Request) -> web.Response:
    """``GET /sd``: Prometheus' HTTP discovery of all replicas."""
    _refuse_strangers(request)
    found: list[dict[str, Any]] = discovery(request.app[keys.SCRAPER].targets(), request.host)
    return reply(found)


async def replica_metrics(request: web.Request) -> web.Response:
    """``GET /sd/replicas/{target}/metrics``: one replica's figures, cleaned."""
    _refuse_strangers(request)
    scraper = request.app[keys.SCRAPER]
    target = scraper.find(request.match_info["target"])
    if target is None:
        raise NotFoundError("target_unknown")
    text = await scraper.fresh_text(target)
    if text is None:
        raise UnavailableError("target_silent")
    return web.Response(text=text, headers={"Content-Type": CONTENT_TYPE})
