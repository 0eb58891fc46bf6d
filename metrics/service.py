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

    from metrics.places import Crowd

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
OTHER = "other"
"""Label of what is outside a closed set; a caller must not be able to add series."""

UPLOAD_RESULTS = (
    "accepted",
    "invalid",
    "unsupported",
    "too_large",
    "storage_full",
    "over_quota",
    "aborted",
    "failed",
)
STEP_STATUSES = ("Succeeded", "Failed")
PHASES = ("Pending", "Running", "Succeeded", "Failed")
STORED_KINDS = ("artifacts", "models", "environments")
DEPLOY_RESULTS = ("succeeded", "failed", "stopped")
BACKENDS = ("embedded", "prometheus")
SCRAPE_RESULTS = ("ok", "failed")
HISTORY_KEPT = ("whole", "brief", "none")

_HTTP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
_STEP_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_RECONCILE_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SCRAPE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)


class ServiceInstruments:
    """The service's own metrics on a registry of their own.

    Sets of labels that are closed exist from the start at zero: ``routes`` are the path
    templates, ``environments``, ``steps``, ``actions`` and ``refusals`` the names in use. What is not in
    them counts as ``other``. ``process`` adds ``process_*`` and ``python_info``, which are read from files
    at each rendering.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        routes: Iterable[str] = (),
        environments: Iterable[str] = (),
        steps: Iterable[str] = (),
        refusals: Iterable[str] = (),
        actions: Iterable[str] = (),
        process: bool = True,
    ) -> None:
        # The client would add a second series to each counter; the switch is the process'.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry
        self._routes = frozenset(routes)
        self._build_http(registry)
        self._build_pipeline(registry, tuple(environments), tuple(steps))
        self._build_reconcile(registry, tuple(environments), tuple(actions))
        self._build_gauges(registry)
        self._build_limits(registry, tuple(refusals))
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

    def refused(self, reason: str) -> None:
        """Count a request or connection that was turned away; by the code of its answer."""
        self._refusal_children.get(reason, self._refusal_children[OTHER]).inc()

    def connections(self, number: int) -> None:
        """Say how many connections to the API are open."""
        self._connections.set(number)

    def stored(self, kind: str, size_bytes: int) -> None:
        """Say how much one of ``STORED_KINDS`` takes of the disk."""
        self._stored.labels(kind).set(size_bytes)

    def disk(self, *, free_bytes: int, kept_bytes: int, stored_limit_bytes: int) -> None:
        """Say what is free of the disk, what has to stay so, and how much may be stored."""
        self._disk_free.set(free_bytes)
        self._disk_kept.set(kept_bytes)
        self._stored_limit.set(stored_limit_bytes)

    def step(self, step: str, status: str, seconds: float) -> None:
        """Count a preparation's step that ended, ``Succeeded`` or ``Failed``."""
        self._steps.labels(step, status).inc()
        self._step_seconds.labels(step).observe(seconds)

    def deploy(self, environment: str, result: str) -> None:
        """Count a roll-out that ended, by one of ``DEPLOY_RESULTS``."""
        self._deploys.labels(environment, result).inc()

    def deployed(self, environment: str, seconds: float) -> None:
        """Say how long it took from the wish for a version until it served."""
        self._deploy_seconds.labels(environment).observe(seconds)

    def reconciled(self, action: str, seconds: float, *, ok: bool) -> None:
        """Count a step of the reconciler; one that is not ``ok`` ended with an unforeseen error."""
        self._reconcile_seconds.labels(action).observe(seconds)
        if not ok:
            self._reconcile_failures.labels(action).inc()

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

    def sandbox(self, level: int) -> None:
        """Say how strictly model processes are confined, from 1 to 3."""
        self._sandbox_level.set(level)

    def backend(self, name: str, *, up: bool) -> None:
        """Say whether a source of figures (one of ``BACKENDS``) answers."""
        self._backend_children[name].set(1 if up else 0)

    def scrape(self, seconds: float, *, ok: bool) -> None:
        """Count a scrape of a replica by the embedded monitor."""
        self._scrapes.labels("ok" if ok else "failed").inc()
        self._scrape_seconds.observe(seconds)

    def history(self, crowd: Crowd, *, unreadable: int) -> None:
        """Say how many targets have what history, and how many parts of it could not be read."""
        for kept, number in crowd._asdict().items():
            self._history_targets.labels(kept).set(number)
        self._unreadable.set(unreadable)

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

    def _build_reconcile(
        self, registry: CollectorRegistry, environments: tuple[str, ...], actions: tuple[str, ...]
    ) -> None:
        self._deploy_seconds = Histogram(
            names.DEPLOY_DURATION,
            "Time from the wish for a version until it served.",
            ("environment",),
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self._reconcile_seconds = Histogram(
            names.RECONCILE_DURATION,
            "Time that a step of the reconciler took.",
            ("action",),
            buckets=_RECONCILE_SECONDS,
            registry=registry,
        )
        self._reconcile_failures = Counter(
            names.RECONCILE_FAILURES,
            "Steps of the reconciler that ended with an unforeseen error.",
            ("action",),
            registry=registry,
        )
        for environment in environments:
            self._deploy_seconds.labels(environment)
        for action in actions:
            self._reconcile_seconds.labels(action)
            self._reconcile_failures.labels(action)

    def _build_gauges(self, registry: CollectorRegistry) -> None:
        self._runs = Gauge(names.RUNS, "Runs that the service keeps.", registry=registry)
        self._gpus = Gauge(names.GPUS, "GPUs that the driver shows.", registry=registry)
        self._gpus_free = Gauge(names.GPUS_FREE, "GPUs that can be taken.", registry=registry)
        self._sandbox_level = Gauge(
            names.SANDBOX_LEVEL,
            "How strictly model processes are confined: 3 is the strictest.",
            registry=registry,
        )
        backend_up = Gauge(
            names.BACKEND_UP,
            "Whether a source of the summary's figures answers.",
            ("backend",),
            registry=registry,
        )
        self._backend_children = {backend: backend_up.labels(backend) for backend in BACKENDS}

    def _build_limits(self, registry: CollectorRegistry, refusals: tuple[str, ...]) -> None:
        counter = Counter(
            names.REFUSALS,
            "Requests and connections turned away: no room, too slow, too large; by code.",
            ("reason",),
            registry=registry,
        )
        self._refusal_children = {reason: counter.labels(reason) for reason in (*refusals, OTHER)}
        self._connections = Gauge(
            names.CONNECTIONS, "Open connections to the API.", registry=registry
        )
        self._stored = Gauge(
            names.STORED_BYTES, "Bytes on the disk, by kind.", ("kind",), registry=registry
        )
        self._stored_limit = Gauge(
            names.STORED_LIMIT_BYTES,
            "Bytes that artifacts and models may take together.",
            registry=registry,
        )
        self._disk_free = Gauge(
            names.DISK_FREE_BYTES, "Free bytes on the data folder's disk.", registry=registry
        )
        self._disk_kept = Gauge(
            names.DISK_KEPT_BYTES,
            "Free bytes below which nothing large is begun.",
            registry=registry,
        )

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
        self._history_targets = Gauge(
            names.HISTORY_TARGETS,
            "Targets with a whole history, with one of the last minute and a half, and with none.",
            ("kept",),
            registry=registry,
        )
        for kept in HISTORY_KEPT:
            self._history_targets.labels(kept)
        self._unreadable = Gauge(
            names.HISTORY_UNREADABLE,
            "Parts of the embedded monitor's history that could not be read since the start.",
            registry=registry,
        )
