"""Every metric name, label and bucket bound that other files may refer to.

Also read in model environments: standard library only, Python 3.9 syntax.
"""

from __future__ import annotations

import math

REQUESTS = "inference_requests_total"
DURATION = "inference_request_duration_seconds"
IN_PROGRESS = "inference_requests_in_progress"
OVERLOADED = "inference_requests_overloaded_total"
PROBES = "inference_probes_total"
MODEL_INFO = "inference_model_info"
START_TIME = "process_start_time_seconds"
AVAILABILITY_OBJECTIVE = "inference_availability_objective_ratio"
LATENCY_OBJECTIVE = "inference_latency_objective_ratio"
OBJECTIVE_WINDOW = "inference_objective_window_seconds"
ROLLOUT_RESTARTS = "inference_replica_restarts_total"
ROLLOUT_FAILED = "inference_rollout_failed"

CODE_CLASSES = ("2xx", "4xx", "5xx")
"""Classes of answers; a class per label value, so that every series exists from the start."""

ERROR_CLASS = "5xx"
"""The class that counts as an error; 4xx is the caller's fault."""

CLIENT_CLASS = "4xx"
"""The class of the caller's own mistakes."""

OVERLOAD_STATUSES = (503, 504)
"""Errors that say nothing against the model: nobody had the time for the request."""

PROBE_RESULTS = ("passed", "failed")
"""How a probe of an idle deployment ends."""

INFO_LABELS = ("framework", "framework_version", "digest")

IDENTITY_LABELS = ("run_id", "model", "environment", "replica", "version")
"""Labels that discovery adds to every series of a replica; no replica says them itself."""

GATEWAY_REPLICA = "gateway"
"""Replica of the refusals that the service itself answers while no replica serves."""

MODELS_JOB = "persephone-models"
"""Prometheus' job of the replicas; prometheus.yml says the same."""

HTTP_REQUESTS = "persephone_http_requests_total"
HTTP_DURATION = "persephone_http_request_duration_seconds"
UPLOADS = "persephone_uploads_total"
PREPARE_STEPS = "persephone_prepare_steps_total"
PREPARE_STEP_DURATION = "persephone_prepare_step_duration_seconds"
DEPLOYMENTS = "persephone_deployments"
DEPLOYS = "persephone_deploys_total"
DEPLOY_DURATION = "persephone_deploy_duration_seconds"
REPLICA_RESTARTS = "persephone_replica_restarts_total"
RECONCILE_DURATION = "persephone_reconcile_duration_seconds"
RECONCILE_FAILURES = "persephone_reconcile_failures_total"
GPUS = "persephone_gpus"
GPUS_FREE = "persephone_gpus_free"
BACKEND_UP = "persephone_metrics_backend_up"
RUNS = "persephone_runs"
SANDBOX_LEVEL = "persephone_sandbox_level"
CONNECTIONS = "persephone_connections"
REFUSALS = "persephone_refusals_total"
STORED_BYTES = "persephone_stored_bytes"
STORED_LIMIT_BYTES = "persephone_stored_limit_bytes"
DISK_FREE_BYTES = "persephone_disk_free_bytes"
DISK_KEPT_BYTES = "persephone_disk_kept_bytes"
SCRAPES = "persephone_scrapes_total"
SCRAPE_DURATION = "persephone_scrape_duration_seconds"
SCRAPE_TARGETS = "persephone_scrape_targets"
HISTORY_TARGETS = "persephone_history_targets"
HISTORY_UNREADABLE = "persephone_history_unreadable_blocks"

SERVICE_METRICS = (
    HTTP_REQUESTS,
    HTTP_DURATION,
    UPLOADS,
    PREPARE_STEPS,
    PREPARE_STEP_DURATION,
    DEPLOYMENTS,
    DEPLOYS,
    DEPLOY_DURATION,
    REPLICA_RESTARTS,
    RECONCILE_DURATION,
    RECONCILE_FAILURES,
    GPUS,
    GPUS_FREE,
    BACKEND_UP,
    RUNS,
    SANDBOX_LEVEL,
    CONNECTIONS,
    REFUSALS,
    STORED_BYTES,
    STORED_LIMIT_BYTES,
    DISK_FREE_BYTES,
    DISK_KEPT_BYTES,
    SCRAPES,
    SCRAPE_DURATION,
    SCRAPE_TARGETS,
    HISTORY_TARGETS,
    HISTORY_UNREADABLE,
)

GPU_AVAILABLE = "persephone_gpu_available"
GPU_HEALTHY = "persephone_gpu_healthy"
GPU_LEASE = "persephone_gpu_lease"
DCGM_GPU_UTIL = "DCGM_FI_DEV_GPU_UTIL"
DCGM_MEM_COPY_UTIL = "DCGM_FI_DEV_MEM_COPY_UTIL"
DCGM_FB_USED = "DCGM_FI_DEV_FB_USED"
DCGM_FB_FREE = "DCGM_FI_DEV_FB_FREE"
DCGM_GPU_TEMP = "DCGM_FI_DEV_GPU_TEMP"
DCGM_POWER_USAGE = "DCGM_FI_DEV_POWER_USAGE"
DCGM_XID_ERRORS = "DCGM_FI_DEV_XID_ERRORS"

GPU_METRICS = (
    GPU_AVAILABLE,
    GPU_HEALTHY,
    GPU_LEASE,
    DCGM_GPU_UTIL,
    DCGM_MEM_COPY_UTIL,
    DCGM_FB_USED,
    DCGM_FB_FREE,
    DCGM_GPU_TEMP,
    DCGM_POWER_USAGE,
    DCGM_XID_ERRORS,
)
"""Exposed by the service beside its own; DCGM's names, so that dashboards made for it work here."""

FINE_RATIO = 1.03
"""Ratio of neighbouring latency bounds up to a second: it bounds the relative error of every
quantile, and leaves room within 5 % for what only the caller can see of a quick prediction."""
COARSE_RATIO = 1.05
"""Ratio of neighbouring bounds from there to ten seconds."""


ROUND_BOUNDS = tuple(
    float(f"{step * scale:.4g}")
    for scale in (0.001, 0.01, 0.1, 1.0)
    for step in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5)
)
"""Thresholds that people set: at these the share of quicker requests is exact."""


def ladder(first: float, last: float, ratio: float) -> tuple[float, ...]:
    """Bounds from ``first`` up to and with ``last`` that grow evenly, by ``ratio`` at most.

    Four significant digits: three would stretch the ratio between some neighbours.
    """
    steps = math.ceil(math.log(last / first) / math.log(ratio))
    inner = (first * (last / first) ** (step / steps) for step in range(steps))
    return (*(float(f"{bound:.4g}") for bound in inner), last)


def _bounds() -> tuple[float, ...]:
    marks = (*ROUND_BOUNDS, 10.0)
    found = [0.0002]
    for mark in marks:
        found.extend(ladder(found[-1], mark, FINE_RATIO if mark <= 1.0 else COARSE_RATIO)[1:])
    return (*found, 30.0, 60.0)


LATENCY_BOUNDS = _bounds()
"""Upper bounds of the latency buckets, in seconds, without +Inf.

A quantile beyond the last bound reads as that bound, so it is above every request's deadline.
"""


def nearest_bound(seconds: float) -> float:
    """Bound at which the share of requests quicker than ``seconds`` is counted."""
    return min(LATENCY_BOUNDS, key=lambda bound: abs(bound - seconds))


def code_class(status: int) -> str:
    """Class of an HTTP status: ``2xx`` for everything below 400."""
    if status >= 500:
        return "5xx"
    return "4xx" if status >= 400 else "2xx"


def bound_text(bound: float) -> str:
    """How a bound stands in the label ``le``: always with a point, ``+Inf`` for infinity."""
    return "+Inf" if math.isinf(bound) else repr(float(bound))
