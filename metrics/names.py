"""Every metric name, label and bucket bound that other files may refer to.

Also read in model environments: standard library only, Python 3.9 syntax.
"""

from __future__ import annotations

import math

REQUESTS = "inference_requests_total"
DURATION = "inference_request_duration_seconds"
IN_PROGRESS = "inference_requests_in_progress"
MODEL_INFO = "inference_model_info"
START_TIME = "process_start_time_seconds"

CODE_CLASSES = ("2xx", "4xx", "5xx")
"""Classes of answers; a class per label value, so that every series exists from the start."""

ERROR_CLASS = "5xx"
"""The class that counts as an error; 4xx is the caller's fault."""

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
REPLICA_RESTARTS = "persephone_replica_restarts_total"
GPUS = "persephone_gpus"
GPUS_FREE = "persephone_gpus_free"
BACKEND_UP = "persephone_metrics_backend_up"
RUNS = "persephone_runs"
SCRAPES = "persephone_scrapes_total"
SCRAPE_DURATION = "persephone_scrape_duration_seconds"
SCRAPE_TARGETS = "persephone_scrape_targets"

SERVICE_METRICS = (
    HTTP_REQUESTS,
    HTTP_DURATION,
    UPLOADS,
    PREPARE_STEPS,
    PREPARE_STEP_DURATION,
    DEPLOYMENTS,
    DEPLOYS,
    REPLICA_RESTARTS,
    GPUS,
    GPUS_FREE,
    BACKEND_UP,
    RUNS,
    SCRAPES,
    SCRAPE_DURATION,
    SCRAPE_TARGETS,
)

FINE_RATIO = 1.03
"""Ratio of neighbouring latency bounds up to a second: it bounds the relative error of every
quantile, and leaves room within 5 % for what only the caller can see of a quick prediction."""
COARSE_RATIO = 1.05
"""Ratio of neighbouring bounds from there to ten seconds."""


def ladder(first: float, last: float, ratio: float) -> tuple[float, ...]:
    """Bounds that grow by ``ratio`` from ``first`` up to and with ``last``.

    Four significant digits: three would stretch the ratio between some neighbours.
    """
    steps = math.ceil(math.log(last / first) / math.log(ratio))
    return (*(float(f"{first * ratio**step:.4g}") for step in range(steps)), last)


LATENCY_BOUNDS = (
    *ladder(0.0002, 1.0, FINE_RATIO)[:-1],
    *ladder(1.0, 10.0, COARSE_RATIO),
    *(30.0, 60.0),
)
"""Upper bounds of the latency buckets, in seconds, without +Inf.

A quantile beyond the last bound reads as that bound, so it is above every request's deadline.
"""


def code_class(status: int) -> str:
    """Class of an HTTP status: ``2xx`` for everything below 400."""
    if status >= 500:
        return "5xx"
    return "4xx" if status >= 400 else "2xx"


def bound_text(bound: float) -> str:
    """How a bound stands in the label ``le``: always with a point, ``+Inf`` for infinity."""
    return "+Inf" if math.isinf(bound) else repr(float(bound))
