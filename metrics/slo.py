"""From sums and quantiles to the figures of the summary, whichever source they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from metrics.reading import Question, positive
from metrics.targets import Reach

if TYPE_CHECKING:
    from metrics.reading import Reading

DataStatus = Literal["ok", "no_traffic", "stale", "not_deployed", "unavailable"]
DATA_STATUSES: tuple[DataStatus, ...] = get_args(DataStatus)

Basis = Literal["requests", "probes", "scrapes"]

RED_SECONDS = 60.0
"""Window of rate, errors and duration."""

SLO_SECONDS = 30 * 86400.0
"""Longest window of the service levels; a younger deployment is measured since it began."""

QUANTILE = 0.95

EVERYBODY = Reach()
"""No replica is known that cannot be read."""


class Counts(NamedTuple):
    """Good and bad of a window, and of what they are."""

    total: float
    bad: float
    basis: Basis

    @property
    def bad_share(self) -> float:
        """Share of the bad ones, 0 to 1; 0 of nothing."""
        return min(self.bad / self.total, 1.0) if self.total > 0 else 0.0


def availability_of(reading: Reading) -> Counts:
    """Count what says whether the run was there for its users.

    Without requests the probes stand for them, and without probes the scrapes: a dead replica
    is asked nothing, so requests alone would call it perfect.
    """
    requests = positive(reading.requests)
    if requests > 0:
        return Counts(requests, positive(reading.errors), "requests")
    failed = positive(reading.probes_failed)
    probes = positive(reading.probes_passed) + failed
    if probes > 0:
        return Counts(probes, failed, "probes")
    scrapes = positive(reading.scrapes)
    return Counts(scrapes, scrapes * (1 - min(positive(reading.up), 1.0)), "scrapes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Whose fault the requests of a window were that went wrong, in percent of all of them."""

    client_percent: float = 0.0
    model_percent: float = 0.0
    overload_percent: float = 0.0

    def as_json(self) -> dict[str, float]:
        """Give the part of the answer that they make up."""
        return {
            "clientPercent": self.client_percent,
            "modelPercent": self.model_percent,
            "overloadPercent": self.overload_percent,
        }


def faults_of(reading: Reading) -> Faults:
    """Split the errors of a window: 4xx are the client's, 503 and 504 overload, 5xx the model's."""
    total = positive(reading.requests)
    if not total:
        return Faults()
    errors, overloaded = positive(reading.errors), positive(reading.overloaded)
    overloaded = min(errors, overloaded)
    return Faults(
        client_percent=_percent(100 * positive(reading.client_errors) / total),
        model_percent=_percent(100 * (errors - overloaded) / total),
        overload_percent=_percent(100 * overloaded / total),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of the monitor page: always finite, percent from 0 to 100."""

    rps: float = 0.0
    errors_percent: float = 0.0
    p95_duration_ms: float = 0.0
    availability: float = 0.0
    latency_p95_ms: float = 0.0
    data_status: DataStatus = "unavailable"
    basis: Basis = "scrapes"
    faults: Faults = field(default_factory=Faults)

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
            "errorsByFault": self.faults.as_json(),
        }


NOT_DEPLOYED = Summary(data_status="not_deployed")
"""Of a run that was never deployed."""

UNAVAILABLE = Summary(data_status="unavailable")
"""Of a deployed run that no source can say anything about."""


def red_question(environment: str | None, seconds: float = RED_SECONDS) -> Question:
    """Ask what rate, errors and duration are made of."""
    return Question(
        seconds=seconds,
        environment=environment,
        quantiles=(QUANTILE,),
        health=True,
        recent=True,
        watched=seconds > RED_SECONDS,
    )


def slo_question(environment: str | None, seconds: float) -> Question:
    """Ask what the service levels are made of."""
    return Question(
        seconds=seconds,
        environment=environment,
        quantiles=(QUANTILE,),
        health=True,
        watched=True,
    )


def summarise(
    red: Reading,
    slo: Reading,
    *,
    deployed: bool = True,
    reach: Reach = EVERYBODY,
) -> Summary:
    """Compute the five figures of the two windows and say how far to trust them.

    Without traffic RED is zeros. ``deployed`` says whether the run is up anywhere, ``reach`` which
    of its replicas can be read.
    """
    requests = positive(red.requests)
    available = availability_of(slo)
    return Summary(
        rps=requests / red.seconds,
        errors_percent=_percent(100 * positive(red.errors) / requests) if requests > 0 else 0.0,
        p95_duration_ms=_milliseconds(red) if requests > 0 else 0.0,
        availability=_percent(100 * (1 - available.bad_share)) if available.total > 0 else 0.0,
        latency_p95_ms=_milliseconds(slo) if positive(slo.requests) > 0 else 0.0,
        data_status=_status(red, slo, reach) if deployed else "not_deployed",
        basis=available.basis,
        faults=faults_of(red),
    )


def window_seconds(deployed_at: float | None, at: float, longest: float = SLO_SECONDS) -> float:
    """Length of the service levels' window: since the first deployment, within its bounds."""
    if deployed_at is None:
        return longest
    return min(max(at - deployed_at, RED_SECONDS), longest)


def _status(red: Reading, slo: Reading, reach: Reach) -> DataStatus:
    if slo.is_empty and red.is_empty:
        return "unavailable"
    asked = positive(red.requests) > 0
    # Whether one that cannot be read is asked anything, nobody knows: it is not idle.
    if not red.is_fresh or (reach.unread and not (asked and reach.read)):
        return "stale"
    return "ok" if asked else "no_traffic"


def _milliseconds(reading: Reading) -> float:
    seconds = reading.durations[0] if reading.durations else None
    return positive(1000 * positive(seconds))


def _percent(value: float) -> float:
    return min(max(value, 0.0), 100.0)
