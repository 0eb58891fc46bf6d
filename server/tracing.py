"""OpenTelemetry's traces, for whoever set an address for them; without one nothing is imported."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from server import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

SERVICE = "persephone"
TRACES_PATH = "/v1/traces"
_SEND_SECONDS = 5.0
_CLOSE_SECONDS = 3.0
_NANOSECONDS = 1e9

Kind = Literal["server", "client", "internal"]
Attributes = dict[str, str | int | float]


class _Sender:
    """Sends by ``exporter``, and says once that it cannot and once that it can again.

    The exporter's own log says it with every batch, three lines every few seconds: its first one
    has the reason, and goes through.
    """

    def __init__(self, exporter: Any, log: str) -> None:
        self._exporter = exporter
        self._fails = False
        self._is_told = False
        self._log = logging.getLogger(log)
        self._log.addFilter(self._is_first)

    def export(self, spans: Any) -> Any:
        """Send a batch, in the thread of whoever collects them."""
        result = self._exporter.export(spans)
        fails = result.name != "SUCCESS"
        if fails and not self._fails:
            logger.warning("traces cannot be sent, and are dropped until the collector answers")
        elif self._fails and not fails:
            logger.info("traces are sent again")
        self._fails = fails
        self._is_told = fails
        return result

    def shutdown(self) -> None:
        """End."""
        self._exporter.shutdown()
        self._log.removeFilter(self._is_first)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is held back."""
        return bool(self._exporter.force_flush(timeout_millis))

    def _is_first(self, _record: logging.LogRecord) -> bool:
        told, self._is_told = self._is_told, True
        return not told


class Tracing:
    """Makes spans and sends them to a collector in the background, in batches.

    What is sent and sampled follows OpenTelemetry's own variables (``OTEL_TRACES_SAMPLER``,
    ``OTEL_RESOURCE_ATTRIBUTES``). A collector that is away costs spans, and nothing else.
    """

    def __init__(self, endpoint: str, *, exporter: Any = None) -> None:
        """Take the collector's address; ``exporter`` stands in for the one that sends there."""
        # Here and nowhere else: they are optional, and take a tenth of a second.
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        self._kinds = {
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
            "internal": trace.SpanKind.INTERNAL,
        }
        self._error = trace.StatusCode.ERROR
        self._propagator = TraceContextTextMapPropagator()
        if exporter is None:
            url = endpoint if endpoint.endswith(TRACES_PATH) else endpoint + TRACES_PATH
            exporter = OTLPSpanExporter(endpoint=url, timeout=_SEND_SECONDS)
        resource = Resource.create({"service.name": SERVICE, "service.version": __version__})
        # It must not hold up the end of the process; ``close`` ends it.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        sender: Any = _Sender(exporter, OTLPSpanExporter.__module__)
        self._provider.add_span_processor(BatchSpanProcessor(sender))
        self._tracer = self._provider.get_tracer(SERVICE, __version__)

    @contextmanager
    def span(
        self,
        name: str,
        kind: Kind = "internal",
        *,
        attributes: Attributes | None = None,
        caller: Mapping[str, str] | None = None,
    ) -> Iterator[Span]:
        """Enclose a piece of work; an error that leaves it is noted.

        ``caller`` are the headers in which a caller may have said what this is a part of.
        """
        parent = None if caller is None else self._propagator.extract(caller)
        with self._tracer.start_as_current_span(
            name, context=parent, kind=self._kinds[kind], attributes=attributes
        ) as span:
            yield span

    def past(self, name: str, seconds: float, *, failed: bool, attributes: Attributes) -> None:
        """Note a piece of work that ended just now and took so long."""
        end = time.time_ns()
        span = self._tracer.start_span(
            name, start_time=end - int(seconds * _NANOSECONDS), attributes=attributes
        )
        if failed:
            self.fail(span)
        span.end(end)

    def fail(self, span: Span) -> None:
        """Note that the work of a span went wrong."""
        span.set_status(self._error)

    def headers(self) -> dict[str, str]:
        """Return the headers that say which span a request is a part of: W3C's trace context."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier

    @staticmethod
    def trace_id(span: Span) -> str:
        """Return the id of a span's trace as it is written everywhere."""
        return f"{span.get_span_context().trace_id:032x}"

    async def close(self) -> None:
        """Send what is left, as long as it takes a collector that answers."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def end() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop was faster
                loop.call_soon_threadsafe(done.set)

        # Not the loop's own threads: those are waited for at the end of the process.
        threading.Thread(target=end, daemon=True, name="end of traces").start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await done.wait()
