"""What the service counts about itself: requests, steps, deployments, GPUs, scrapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from metrics import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import CollectorRegistry

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
OTHER = "other"
"""Label of what is outside a closed set; a caller must not be able to add series."""

UPLOAD_RESULTS = (
    "accepted",
    "invalid",
    "unsupported",
    "too_large",
    "storage_full",
    "aborted",
    "failed",
)
STEP_STATUSES = ("Succeeded", "Failed")
PHASES = ("Pending", "Running", "Succeeded", "Failed")
DEPLOY_RESULTS = ("succeeded", "failed", "stopped")
BACKENDS = ("embedded", "prometheus")
SCRAPE_RESULTS = ("ok", "failed")

_HTTP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
_STEP_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_SCRAPE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)


class ServiceInstruments:
    """The service's own metrics on a registry of their own.

    Sets of labels that are closed exist from the start at zero: ``routes`` are the path
    templates, ``environments`` and ``steps`` the names in use. What is not in them counts as
    ``other``. ``process`` adds ``process_*`` and ``python_info``, which are read from files
    at each rendering.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        routes: Iterable[str] = (),
        environments: Iterable[str] = (),
        steps: Iterable[str] = (),
        process: bool = True,
    ) -> None:
        # The client would add a second series to each counter; the switch is the process'.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry
        self._routes = frozenset(routes)
        self._build_http(registry)
        self._build_pipeline(registry, tuple(environments), tuple(steps))
        self._build_gauges(registry)
        self._build_scrapes(registry)
        if process:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered HTTP request of the API; ``route`` is the path's template."""
        key = (route, method, status)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_child(route, method, status)
        counter, histogram = child
        counter.inc()
        histogram.observe(seconds)

    def upload(self, result: str) -> None:
        """Count an upload that ended, by one of ``UPLOAD_RESULTS``."""
        self._uploads.labels(result if result in UPLOAD_RESULTS else "failed").inc()

    def step(self, step: str, status: str, seconds: float) -> None:
        """Count a preparation's step that ended, ``Succeeded`` or ``Failed``."""
        self._steps.labels(step, status).inc()
        self._step_seconds.labels(step).observe(seconds)

    def deploy(self, environment: str, result: str) -> None:
        """Count a roll-out that ended, by one of ``DEPLOY_RESULTS``."""
        self._deploys.labels(environment, result).inc()

    def restart(self, environment: str) -> None:
        """Count a replica that is started again after a crash."""
        self._restarts.labels(environment).inc()

    def deployments(self, numbers: Mapping[tuple[str, str], int]) -> None:
        """Say how many deployments there are by (environment, phase); others are none."""
        for key, child in self._deployment_children.items():
            child.set(numbers.get(key, 0))

    def runs(self, number: int) -> None:
        """Say how many runs there are."""
        self._runs.set(number)

    def gpus(self, number: int, free: int) -> None:
        """Say how many GPUs there are and how many of them can be taken."""
        self._gpus.set(number)
        self._gpus_free.set(free)

    def backend(self, name: str, *, up: bool) -> None:
        """Say whether a source of figures (one of ``BACKENDS``) answers."""
        self._backend_children[name].set(1 if up else 0)

    def scrape(self, seconds: float, *, ok: bool) -> None:
        """Count a scrape of a replica by the embedded monitor."""
        self._scrapes.labels("ok" if ok else "failed").inc()
        self._scrape_seconds.observe(seconds)

    def scrape_targets(self, number: int) -> None:
        """Say how many replicas are scraped."""
        self._scrape_targets.set(number)

    def text(self) -> bytes:
        """Render everything in Prometheus' text format; reads files, so not on the event loop."""
        return generate_latest(self._registry)

    def _request_child(self, route: str, method: str, status: int) -> tuple[Counter, Histogram]:
        name = route if route in self._routes else OTHER
        verb = method if method in METHODS else OTHER
        child = (self._requests.labels(name, verb, str(status)), self._seconds.labels(name))
        # Only what is in the closed sets is remembered: paths are the callers' choice.
        if name == route and verb == method:
            self._request_children[route, method, status] = child
        return child

    def _build_http(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            names.HTTP_REQUESTS,
            "Requests to the API, by path template, method and status.",
            ("route", "method", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            names.HTTP_DURATION,
            "Time from a request's head to the end of its answer.",
            ("route",),
            buckets=_HTTP_SECONDS,
            registry=registry,
        )
        for route in (*sorted(self._routes), OTHER):
            self._seconds.labels(route)
        self._request_children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def _build_pipeline(
        self, registry: CollectorRegistry, environments: tuple[str, ...], steps: tuple[str, ...]
    ) -> None:
        self._uploads = Counter(
            names.UPLOADS, "Uploads that ended, by result.", ("result",), registry=registry
        )
        self._steps = Counter(
            names.PREPARE_STEPS,
            "Steps of preparations that ended.",
            ("step", "status"),
            registry=registry,
        )
        self._step_seconds = Histogram(
            names.PREPARE_STEP_DURATION,
            "Time that a step of a preparation took.",
            ("step",),
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self._deploys = Counter(
            names.DEPLOYS,
            "Roll-outs that ended, by result.",
            ("environment", "result"),
            registry=registry,
        )
        self._restarts = Counter(
            names.REPLICA_RESTARTS,
            "Replicas started again after a crash.",
            ("environment",),
            registry=registry,
        )
        deployments = Gauge(
            names.DEPLOYMENTS,
            "Deployments by the phase of their newest attempt.",
            ("environment", "phase"),
            registry=registry,
        )
        for result in UPLOAD_RESULTS:
            self._uploads.labels(result)
        for step in steps:
            self._step_seconds.labels(step)
            for status in STEP_STATUSES:
                self._steps.labels(step, status)
        for environment in environments:
            self._restarts.labels(environment)
            for result in DEPLOY_RESULTS:
                self._deploys.labels(environment, result)
        self._deployment_children = {
            (environment, phase): deployments.labels(environment, phase)
            for environment in environments
            for phase in PHASES
        }

    def _build_gauges(self, registry: CollectorRegistry) -> None:
        self._runs = Gauge(names.RUNS, "Runs that the service keeps.", registry=registry)
        self._gpus = Gauge(names.GPUS, "GPUs that the driver shows.", registry=registry)
        self._gpus_free = Gauge(names.GPUS_FREE, "GPUs that can be taken.", registry=registry)
        backend_up = Gauge(
            names.BACKEND_UP,
            "Whether a source of the summary's figures answers.",
            ("backend",),
            registry=registry,
        )
        self._backend_children = {backend: backend_up.labels(backend) for backend in BACKENDS}

    def _build_scrapes(self, registry: CollectorRegistry) -> None:
        self._scrapes = Counter(
            names.SCRAPES,
            "Scrapes of replicas by the embedded monitor.",
            ("result",),
            registry=registry,
        )
        for result in SCRAPE_RESULTS:
            self._scrapes.labels(result)
        self._scrape_seconds = Histogram(
            names.SCRAPE_DURATION,
            "Time that such a scrape took.",
            buckets=_SCRAPE_SECONDS,
            registry=registry,
        )
        self._scrape_targets = Gauge(
            names.SCRAPE_TARGETS, "Replicas that are scraped.", registry=registry
        )
