"""Traces: what a span is made for, what it says, and that it costs nothing where none are wanted."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from metrics.service import ServiceInstruments
from server.api import parameters
from server.api.edge import make_runner, setup_edge
from server.api.gateway import Gateway
from server.api.replies import reply
from server.api.traces import traced
from server.api.upstream import Place
from server.errors import ConflictError
from server.logs import deployment_id_var, run_id_var, trace_id_var
from server.messages import Messages
from server.pipeline.observing import StepObserver
from server.setting_values import SettingsError
from server.settings import Settings
from server.states import Action, Phase, Step
from server.tracing import Tracing
from tests.support.gateway import Replica
from tests.support.records import a_deployment, a_run
from tests.support.toy_edge import MemorySessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.sdk.trace import ReadableSpan

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "vendor=1"}
RUN = "ab" * 16
MADE = a_deployment(a_run(RUN, "o", "iris"), 3, "prod")


class Traced(NamedTuple):
    url: str
    client: aiohttp.ClientSession
    tracing: Tracing
    memory: InMemorySpanExporter

    async def spans(self) -> dict[str, ReadableSpan]:
        """End the traces and return the spans by name."""
        await self.tracing.close()
        return {span.name: span for span in self.memory.get_finished_spans()}


@asynccontextmanager
async def service(replica_port: int = 0) -> AsyncIterator[Traced]:
    memory = InMemorySpanExporter()
    tracing = Tracing("", exporter=memory)
    gateway = Gateway(5, tracing)
    place = Place("127.0.0.1", replica_port, "r1.1")

    async def poll(request: web.Request) -> web.Response:
        parameters.run_id(request)
        deployment_id_var.set(MADE.id)
        return reply({"traceId": trace_id_var.get()})

    async def refuse(_request: web.Request) -> web.Response:
        raise ConflictError("not_prepared")

    async def fail(_request: web.Request) -> web.Response:
        raise RuntimeError("unforeseen")

    async def predict(request: web.Request) -> web.StreamResponse:
        return await gateway.forward(request, place, "/v2/models/iris/infer", None)

    app = web.Application()
    app.router.add_get("/poll", poll)
    app.router.add_get("/refuse", refuse)
    app.router.add_get("/fail", fail)
    app.router.add_get("/healthz", refuse)
    app.router.add_post("/{env}/v2/models/{name}/infer", predict)
    setup_edge(app, Settings(), Messages(), MemorySessions(), lambda *_seen: None)
    app.middlewares.insert(0, traced(tracing))
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as client:
            port = runner.addresses[0][1]
            yield Traced(f"http://127.0.0.1:{port}", client, tracing, memory)
    finally:
        await runner.cleanup()
        await gateway.close()
        await tracing.close()


def context_of(span: ReadableSpan) -> Any:
    assert span.context is not None
    return span.context


# ── requests


async def test_a_request_is_a_part_of_its_callers_trace_and_says_what_it_was_about() -> None:
    async with service() as made:
        url = f"{made.url}/poll?runId={RUN}"
        headers = {**CALLER, "X-Request-Id": "mine"}
        async with made.client.get(url, headers=headers) as answer:
            assert (await answer.json())["traceId"] == TRACE
        span = (await made.spans())["GET /poll"]

    assert f"{context_of(span).trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert span.kind is SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/poll",
        "url.path": "/poll",
        "http.response.status_code": 200,
        "persephone.request_id": "mine",
        "persephone.run_id": RUN,
        "persephone.deployment_id": "prod/iris/3",
    }
    assert span.resource.attributes["service.name"] == "persephone"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/refuse", 409, StatusCode.UNSET),
        ("/poll", 400, StatusCode.UNSET),
        ("/fail", 500, StatusCode.ERROR),
        ("/nowhere", 404, StatusCode.UNSET),
    ],
)
async def test_only_what_went_wrong_here_is_an_error(
    path: str, status: int, code: StatusCode
) -> None:
    async with service() as made:
        async with made.client.get(made.url + path) as answer:
            assert answer.status == status
        spans = await made.spans()
    (span,) = spans.values()

    assert span.name == ("GET unmatched" if path == "/nowhere" else f"GET {path}")
    assert (span.attributes or {})["http.response.status_code"] == status
    assert span.status.status_code is code


@pytest.mark.parametrize("sent", ["", "nonsense", "00-" + "0" * 32 + "-00f067aa0ba902b7-01"])
async def test_a_caller_without_a_trace_begins_one(sent: str) -> None:
    async with service() as made:
        url = f"{made.url}/poll?runId={RUN}"
        async with made.client.get(url, headers={"traceparent": sent}) as answer:
            assert answer.status == 200
        span = (await made.spans())["GET /poll"]

    assert span.parent is None


async def test_what_machines_ask_all_the_time_has_no_span() -> None:
    async with service() as made:
        async with made.client.get(f"{made.url}/healthz", headers=CALLER) as answer:
            assert answer.status == 409
        assert await made.spans() == {}


# ── the gateway's hop


def trace_headers(replica: Replica) -> dict[str, str]:
    lines = [line.split(": ", 1) for line in replica.heads[0].split("\r\n")[1:] if line]
    return {name.lower(): value for name, value in lines if name.lower().startswith("trace")}


@pytest.mark.parametrize("size", [2, 400_000])
async def test_a_hop_is_a_span_and_the_replica_is_told_of_it(size: int) -> None:
    async with Replica() as replica, service(replica.port) as made:
        url = f"{made.url}/dev/v2/models/iris/infer"
        async with made.client.post(url, data=b"x" * size, headers=CALLER) as answer:
            assert answer.status == 200
        spans = await made.spans()
    hop, request = spans["gateway hop"], spans["POST /{env}/v2/models/{name}/infer"]

    assert hop.parent is not None
    assert hop.parent.span_id == context_of(request).span_id
    assert hop.kind is SpanKind.CLIENT
    assert dict(hop.attributes or {}) == {
        "server.address": "127.0.0.1",
        "server.port": replica.port,
        "http.response.status_code": 200,
    }
    assert trace_headers(replica) == {
        "traceparent": f"00-{TRACE}-{context_of(hop).span_id:016x}-01",
        "tracestate": "vendor=1",
    }


async def test_a_hop_that_fails_says_so() -> None:
    async with service(replica_port=1) as made:
        async with made.client.post(f"{made.url}/dev/v2/models/iris/infer") as answer:
            assert answer.status == 503
        spans = await made.spans()

    assert spans["gateway hop"].status.status_code is StatusCode.ERROR
    assert [event.name for event in spans["gateway hop"].events] == ["exception"]


async def test_without_traces_the_callers_own_reaches_the_replica() -> None:
    app = web.Application()
    gateway = Gateway(5)
    async with Replica() as replica:
        place = Place("127.0.0.1", replica.port, "r1.1")

        async def predict(request: web.Request) -> web.StreamResponse:
            return await gateway.forward(request, place, "/", None)

        app.router.add_post("/predict", predict)
        setup_edge(app, Settings(), Messages(), MemorySessions(), lambda *_seen: None)
        runner = make_runner(app, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/predict"
            async with aiohttp.ClientSession() as client, client.post(url, headers=CALLER):
                pass
        finally:
            await runner.cleanup()
            await gateway.close()

        assert trace_headers(replica) == CALLER


# ── steps and the reconciler


def instruments() -> ServiceInstruments:
    return ServiceInstruments(
        CollectorRegistry(),
        environments=("prod",),
        steps=[step.value for step in Step],
        actions=[action.value for action in Action],
    )


async def test_a_step_is_a_span_in_the_trace_of_the_request_that_started_it() -> None:
    memory = InMemorySpanExporter()
    tracing = Tracing("", exporter=memory)
    observe = StepObserver(instruments(), tracing)
    token = run_id_var.set(RUN)
    with tracing.span("POST /prepare/start", "server"):
        observe(Step.LOAD, Phase.SUCCEEDED, 2.0)
        observe(Step.SMOKE, Phase.FAILED, 0.5)
    run_id_var.reset(token)
    await tracing.close()
    load, smoke, request = memory.get_finished_spans()

    assert (load.name, smoke.name) == ("step load", "step smoke-test")
    assert load.parent is not None
    assert load.parent.span_id == context_of(request).span_id
    assert load.start_time is not None
    assert load.end_time is not None
    assert load.end_time - load.start_time == 2_000_000_000
    assert dict(load.attributes or {}) == {"persephone.run_id": RUN}
    assert load.status.status_code is StatusCode.UNSET
    assert smoke.status.status_code is StatusCode.ERROR


# ── off, absent, away


def test_without_an_address_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import sys; from server.app import create_app; from server.settings import Settings;"
        "app = create_app(Settings());"
        "assert len(app.middlewares) == 1, app.middlewares;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_an_address_without_the_packages_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.setting_values.find_spec", lambda _name: None)

    with pytest.raises(SettingsError, match="pip install -r requirements-tracing"):
        Settings.from_env({"PERSEPHONE_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    assert Settings.from_env({"PERSEPHONE_OTLP_ENDPOINT": ""}).otlp_endpoint == ""


class Refuses(SpanExporter):
    """A collector that is away for two batches, of which its client writes much into the log."""

    def __init__(self) -> None:
        self.batches = 0

    def export(self, _spans: Any) -> SpanExportResult:
        self.batches += 1
        if self.batches in {3, 4}:
            return SpanExportResult.SUCCESS
        log = logging.getLogger(OTLPSpanExporter.__module__)
        log.warning("Connection refused, retrying")
        log.error("Failed to export")
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        return


async def test_a_collector_that_is_away_is_told_once_and_that_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    tracing = Tracing("", exporter=Refuses())
    for _ in range(5):
        with tracing.span("work"):
            pass
        tracing._provider.force_flush()
    await tracing.close()

    away = [
        ("WARNING", "Connection refused, retrying"),
        ("WARNING", "traces cannot be sent, and are dropped until the collector answers"),
    ]
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [*away, ("INFO", "traces are sent again"), *away]


class NeverSends(SpanExporter):
    """A collector that takes the connection and says nothing."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def export(self, _spans: Any) -> SpanExportResult:
        self.over.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        return


async def test_a_collector_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.tracing._CLOSE_SECONDS", 0.1)
    hanging = NeverSends()
    tracing = Tracing("", exporter=hanging)
    with tracing.span("work"):
        pass

    await tracing.close()
    hanging.over.set()
