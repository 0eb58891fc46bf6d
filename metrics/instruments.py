"""What one replica counts about its predictions, cheap enough for every request.

Runs in model environments: Python 3.9 syntax, standard library and prometheus-client only.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from metrics import names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

HELP = {
    names.REQUESTS: "Predictions answered, by class of the answer's status.",
    names.DURATION: "Time from the arrival of a request that the model was given to its answer.",
    names.IN_PROGRESS: "Predictions being answered at the moment.",
    names.OVERLOADED: "Predictions answered with 503 or 504; they are among the 5xx too.",
    names.PROBES: "Probes of the deployment while nobody used it; no predictions of callers.",
    names.MODEL_INFO: "What is being served.",
    names.START_TIME: "When the process started, in seconds since 1970.",
}


class InProgress:
    """Requests under way; also a context manager that counts one."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """One more."""
        self.value += 1

    def dec(self) -> None:
        """One less."""
        self.value -= 1

    def __enter__(self) -> Self:
        self.inc()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.dec()


class InferenceInstruments:
    """RED of one replica: requests by class, their latency, how many are under way.

    Every series exists from the start at zero: Prometheus would otherwise lose the first
    errors of a class. All calls belong to one thread, the event loop's, so nothing is locked.

    ``framework`` left out means that no model stands behind these figures (the refusals that
    the service itself answers); there is no ``inference_model_info`` then. ``started_at``, in
    seconds since 1970, adds ``process_start_time_seconds``; ``probes`` adds the counts of
    probes, which the service makes and no replica. ``registry`` may be None if only ``text``
    is used.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None,
        *,
        framework: str | None = None,
        framework_version: str = "",
        digest: str = "",
        started_at: float | None = None,
        probes: bool = False,
    ) -> None:
        self.in_progress = InProgress()
        self._bounds = names.LATENCY_BOUNDS
        self._requests = dict.fromkeys(names.CODE_CLASSES, 0)
        self._overloaded = 0
        self._probes = dict.fromkeys(names.PROBE_RESULTS if probes else (), 0)
        self._buckets = [0] * (len(self._bounds) + 1)
        self._seconds = 0.0
        self._started_at = started_at
        self._info: dict[str, str] = {}
        if framework is not None:
            self._info = {
                "framework": framework,
                "framework_version": framework_version,
                "digest": digest,
            }
        self._les = [names.bound_text(bound) for bound in (*self._bounds, math.inf)]
        self._bucket_heads = [f'{names.DURATION}_bucket{{le="{le}"}} ' for le in self._les]
        if registry is not None:
            registry.register(self)

    def observe(self, code_class: str, seconds: float | None, *, overloaded: bool = False) -> None:
        """Count one answered request of class ``2xx``, ``4xx`` or ``5xx``.

        ``seconds`` is None where the model was never asked: a refusal is quick whatever the model
        does, and would make it look quick. ``overloaded`` says that nobody had the time for it
        (503, 504).

        Raises:
            KeyError: there is no such class.
        """
        self._requests[code_class] += 1
        self._overloaded += overloaded
        if seconds is not None:
            self._buckets[bisect_left(self._bounds, seconds)] += 1
            self._seconds += seconds

    def probe(self, *, passed: bool) -> None:
        """Count one probe.

        Raises:
            KeyError: these figures have no probes.
        """
        self._probes[names.PROBE_RESULTS[0 if passed else 1]] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, as a registry asks for them."""
        # Replicas write their figures themselves, and would carry 4 MiB for nothing.
        from prometheus_client.core import (  # noqa: PLC0415
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            InfoMetricFamily,
        )

        requests = CounterMetricFamily(names.REQUESTS, HELP[names.REQUESTS], labels=("code",))
        for code, count in self._requests.items():
            requests.add_metric((code,), count)
        yield requests
        yield CounterMetricFamily(names.OVERLOADED, HELP[names.OVERLOADED], value=self._overloaded)
        if self._probes:
            probes = CounterMetricFamily(names.PROBES, HELP[names.PROBES], labels=("result",))
            for result, count in self._probes.items():
                probes.add_metric((result,), count)
            yield probes
        cumulated = accumulate(self._buckets)
        yield HistogramMetricFamily(
            names.DURATION,
            HELP[names.DURATION],
            buckets=[(self._les[place], float(count)) for place, count in enumerate(cumulated)],
            sum_value=self._seconds,
        )
        yield GaugeMetricFamily(
            names.IN_PROGRESS, HELP[names.IN_PROGRESS], value=self.in_progress.value
        )
        if self._info:
            yield InfoMetricFamily(
                names.MODEL_INFO[: -len("_info")], HELP[names.MODEL_INFO], value=self._info
            )
        if self._started_at is not None:
            yield GaugeMetricFamily(
                names.START_TIME, HELP[names.START_TIME], value=self._started_at
            )

    def text(self) -> str:
        """Write the exposition in Prometheus' text format 0.0.4.

        The same as rendering the registry, some twenty times faster: a scrape every other
        second must not show in a replica's latency.
        """
        lines = [*head(names.REQUESTS, "counter")]
        for code, count in self._requests.items():
            lines.append(f'{names.REQUESTS}{{code="{code}"}} {float(count)!r}')
        lines.extend(head(names.OVERLOADED, "counter"))
        lines.append(f"{names.OVERLOADED} {float(self._overloaded)!r}")
        if self._probes:
            lines.extend(head(names.PROBES, "counter"))
            lines.extend(
                f'{names.PROBES}{{result="{result}"}} {float(count)!r}'
                for result, count in self._probes.items()
            )
        lines.extend(head(names.DURATION, "histogram"))
        cumulated = list(accumulate(self._buckets))
        lines.extend(
            f"{self._bucket_heads[place]}{float(count)!r}" for place, count in enumerate(cumulated)
        )
        lines.append(f"{names.DURATION}_count {float(cumulated[-1])!r}")
        lines.append(f"{names.DURATION}_sum {self._seconds!r}")
        lines.extend(head(names.IN_PROGRESS, "gauge"))
        lines.append(f"{names.IN_PROGRESS} {float(self.in_progress.value)!r}")
        if self._info:
            lines.extend(head(names.MODEL_INFO, "gauge"))
            labels = ",".join(f'{key}="{escape(value)}"' for key, value in self._info.items())
            lines.append(f"{names.MODEL_INFO}{{{labels}}} 1.0")
        if self._started_at is not None:
            lines.extend(head(names.START_TIME, "gauge"))
            lines.append(f"{names.START_TIME} {self._started_at!r}")
        return "\n".join(lines) + "\n"


def escape(value: str) -> str:
    """Escape a label's value as the text format writes it between quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def head(name: str, kind: str) -> tuple[str, str]:
    """Write the two lines that stand before a metric's samples."""
    return f"# HELP {name} {HELP[name]}", f"# TYPE {name} {kind}"
