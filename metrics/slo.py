"""From sums and quantiles to the five figures of the summary, whichever source they came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

DataStatus = Literal["ok", "no_traffic", "stale", "not_deployed", "unavailable"]

RED_SECONDS = 60.0
"""Window of rate, errors and duration."""

SLO_SECONDS = 30 * 86400.0
"""Longest window of the service levels; a younger deployment is measured since it began."""

STALE_SECONDS = 15.0
"""Age of the newest scrape from which figures are called stale: three of Prometheus' scrapes."""

QUANTILE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What a source says of a run: sums and quantiles; None or NaN where it has nothing.

    ``at`` and ``last_scrape_at`` in seconds since 1970; ``up`` is the share of good scrapes,
    averaged over the replicas, and ``samples`` the number of those scrapes.
    """

    at: float
    rps: float | None = None
    error_rps: float | None = None
    p95_seconds: float | None = None
    slo_total: float | None = None
    slo_errors: float | None = None
    slo_p95_seconds: float | None = None
    up: float | None = None
    samples: float | None = None
    last_scrape_at: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the source knows nothing of the run: it was not scraped yet, or never."""
        return not _positive(self.samples) and not _positive(self.rps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of the monitor page: always finite, percent from 0 to 100."""

    rps: float = 0.0
    errors_percent: float = 0.0
    p95_duration_ms: float = 0.0
    availability: float = 0.0
    latency_p95_ms: float = 0.0
    data_status: DataStatus = "unavailable"

    def as_json(self) -> dict[str, Any]:
        """Give the part of the answer that the figures make up."""
        return {
            "red": {
                "rps": self.rps,
                "errorsPercent": self.errors_percent,
                "p95DurationMs": self.p95_duration_ms,
            },
            "slo": {"availability": self.availability, "latencyP95Ms": self.latency_p95_ms},
            "dataStatus": self.data_status,
        }


NOT_DEPLOYED = Summary(data_status="not_deployed")
"""Of a run that was never deployed."""

UNAVAILABLE = Summary(data_status="unavailable")
"""Of a deployed run that no source can say anything about."""


def summarise(
    readings: Readings, *, deployed: bool = True, stale_after: float = STALE_SECONDS
) -> Summary:
    """Compute the five figures and say how far to trust them.

    Without traffic RED is zeros, and the share of good scrapes stands for the availability: a
    dead replica is asked nothing, so a share of requests alone would call it perfect.
    ``deployed`` says whether the run is up anywhere; ``stale_after`` is in seconds.
    """
    rps = _positive(readings.rps)
    total = _positive(readings.slo_total)
    if total > 0:
        availability = 100 * (1 - _positive(readings.slo_errors) / total)
    else:
        availability = 100 * _positive(readings.up)
    return Summary(
        rps=rps,
        errors_percent=_percent(100 * _positive(readings.error_rps) / rps) if rps > 0 else 0.0,
        p95_duration_ms=_milliseconds(readings.p95_seconds) if rps > 0 else 0.0,
        availability=_percent(availability),
        latency_p95_ms=_milliseconds(readings.slo_p95_seconds) if total > 0 else 0.0,
        data_status=_status(readings, deployed=deployed, stale_after=stale_after),
    )


def window_seconds(deployed_at: float | None, at: float) -> float:
    """Length of the service levels' window: since the first deployment, within its bounds."""
    if deployed_at is None:
        return SLO_SECONDS
    return min(max(at - deployed_at, RED_SECONDS), SLO_SECONDS)


def _status(readings: Readings, *, deployed: bool, stale_after: float) -> DataStatus:
    if not deployed:
        return "not_deployed"
    if readings.is_empty:
        return "unavailable"
    if readings.last_scrape_at is None or readings.at - readings.last_scrape_at > stale_after:
        return "stale"
    return "ok" if _positive(readings.rps) > 0 else "no_traffic"


def _positive(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) and value > 0 else 0.0


def _milliseconds(seconds: float | None) -> float:
    return _positive(1000 * _positive(seconds))


def _percent(value: float) -> float:
    return min(max(value, 0.0), 100.0)
