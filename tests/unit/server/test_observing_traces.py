"""What the reconciler does, as spans: in whose trace, and for how long."""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from metrics.service import ServiceInstruments
from server.logs import request_id_var, trace_id_var
from server.reconcile.observing import Observing
from server.states import Action, Wanted
from server.tracing import Tracing
from tests.support.records import a_deployment, a_run

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

    from server.records import Deployment

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
RUN = "ab" * 16
MADE = a_deployment(a_run(RUN, "o", "iris"), 3, "prod")


def instruments() -> ServiceInstruments:
    return ServiceInstruments(CollectorRegistry(), process=False)


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


async def test_what_the_reconciler_does_is_a_span_and_what_it_only_looks_at_is_none() -> None:
    memory = InMemorySpanExporter()
    tracing = Tracing("", exporter=memory)
    observing = Observing(Any, instruments(), tracing)  # type: ignore[arg-type]
    for action in (Action.NOTHING, Action.WAIT, Action.BACK_OFF, Action.START):
        with observing.around(MADE, action):
            pass
    with pytest.raises(RuntimeError, match="unforeseen"), observing.around(MADE, Action.ADMIT):
        raise RuntimeError("unforeseen")
    await tracing.close()
    start, admit = memory.get_finished_spans()

    assert (start.name, admit.name) == ("reconcile start", "reconcile admit")
    ids = {"persephone.run_id": RUN, "persephone.deployment_id": "prod/iris/3"}
    assert dict(start.attributes or {}) == ids
    assert start.status.status_code is StatusCode.UNSET
    assert admit.status.status_code is StatusCode.ERROR


async def test_what_a_request_wanted_is_done_in_its_trace_until_it_has_ended() -> None:
    memory = InMemorySpanExporter()
    tracing = Tracing("", exporter=memory)
    store: Any = SimpleNamespace(deployments={MADE.key: MADE})
    observing = Observing(store, instruments(), tracing)
    said: list[tuple[str, str]] = []

    def step(made: Deployment, action: Action) -> None:
        with observing.around(made, action):
            said.append((request_id_var.get(), trace_id_var.get()))

    def ask() -> None:
        request_id_var.set("r-7")
        with tracing.span("POST /deploy/start", "server", caller=CALLER) as span:
            trace_id_var.set(tracing.trace_id(span))
            observing.asked(MADE)

    copy_context().run(ask)
    step(replace(MADE, version=2), Action.ABANDON)
    step(MADE, Action.START)
    step(MADE, Action.ADMIT)
    observing.ended(MADE.key, "succeeded")
    step(MADE, Action.START)
    await tracing.close()
    request, abandon, start, admit, again = memory.get_finished_spans()

    assert request.parent is not None
    for span in (start, admit):
        assert span.parent is not None
        assert span.parent.span_id == context_of(request).span_id
        assert f"{context_of(span).trace_id:032x}" == TRACE
    assert abandon.parent is None
    assert again.parent is None
    assert said == [("", ""), ("r-7", TRACE), ("r-7", TRACE), ("", "")]


async def test_a_stop_is_a_wish_of_its_own() -> None:
    memory = InMemorySpanExporter()
    tracing = Tracing("", exporter=memory)
    store: Any = SimpleNamespace(deployments={MADE.key: MADE})
    observing = Observing(store, instruments(), tracing)
    stopped = replace(MADE, wanted=Wanted.STOPPED)
    for name, made in (("start", MADE), ("stop", stopped)):
        with tracing.span(name):
            observing.asked(made)
    for made, action in ((MADE, Action.ADMIT), (stopped, Action.STOP)):
        with observing.around(made, action):
            pass
    await tracing.close()
    spans = {span.name: span for span in memory.get_finished_spans()}

    assert spans["reconcile admit"].parent is None
    assert spans["reconcile stop"].parent is not None
    assert spans["reconcile stop"].parent.span_id == context_of(spans["stop"]).span_id
