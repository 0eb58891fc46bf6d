"""The whole HTTP surface on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from server.api import (
    deploy,
    events,
    inference,
    logs,
    monitor,
    objectives,
    prepare,
    runs,
    support,
    system,
    tokens,
    upload,
)
from server.api.multipart import defer_continue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.api.reference import Reference

MODEL = "/{env}/v2/models/{name}"


def routes(reference: Reference) -> Iterable[web.RouteDef]:
    """Return every route of the service; ``reference`` explains them to people."""
    get, post = web.get, web.post
    return [
        post("/upload", upload.upload, expect_handler=defer_continue),
        post("/prepare/start", prepare.start),
        get("/prepare/status", prepare.status),
        get("/prepare/gpus", prepare.gpus),
        post("/deploy/start", deploy.start),
        get("/deploy/status", deploy.status),
        post("/deploy/stop", deploy.stop),
        get("/monitor/summary", monitor.summary),
        get("/monitor/series", monitor.series),
        get("/runs", runs.listing),
        web.delete("/runs/{runId}", runs.delete),
        post("/tokens", tokens.create),
        get("/tokens", tokens.listing),
        web.delete("/tokens/{id}", tokens.revoke),
        get("/runs/{runId}/events", events.events),
        get("/runs/{runId}/logs", logs.logs),
        get("/runs/{runId}/passport", support.passport),
        get("/runs/{runId}/support-bundle", support.bundle),
        get("/runs/{runId}/slo", objectives.show),
        web.put("/runs/{runId}/slo", objectives.replace),
        web.delete("/runs/{runId}/slo", objectives.reset),
        get("/healthz", system.healthz),
        get("/readyz", system.readyz),
        get("/metrics", system.metrics),
        get("/sd", system.discovery_of_replicas),
        get("/sd/replicas/{target}/metrics", system.replica_metrics),
        get("/", reference.home),
        get("/openapi.json", reference.openapi),
        get("/docs", reference.docs),
        get("/{env}/v2", inference.server_metadata),
        get("/{env}/v2/health/live", inference.live),
        get("/{env}/v2/health/ready", inference.ready),
        *_predictions(MODEL),
        *_predictions(f"{MODEL}/versions/{{version}}"),
    ]


def _predictions(base: str) -> Iterable[web.RouteDef]:
    # Patterns are tried in order, and nearly all requests are predictions.
    yield web.post(f"{base}/infer", inference.forward)
    yield web.get(base, inference.forward)
    yield web.get(f"{base}/ready", inference.forward)
    yield web.get(f"{base}/stats", inference.forward)
