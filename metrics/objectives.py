"""Service level objectives: what was promised, what of it was kept, how fast the rest goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metrics import durations, names
from metrics.reading import Question, positive
from metrics.slo import Counts, availability_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metrics.reading import Reading
    from metrics.slo import Basis

BURN_SECONDS = {"5m": 300.0, "1h": 3600.0, "6h": 21600.0, "3d": 259200.0}
"""Windows of the burn rates."""

EXHAUSTION = "1h"
"""The burn rate that is taken to go on, where it is asked how long the budget lasts."""


FAR_SECONDS = 1e12
"""A budget that lasts longer is not being used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is promised of a deployment over a window of so many seconds.

    ``availability`` is the percentage of requests without an error; ``latency_share`` the
    percentage of answers within ``latency_seconds``.
    """

    availability: float = 99.0
    latency_seconds: float = 0.5
    latency_share: float = 95.0
    seconds: float = 30 * 86400.0

    @property
    def bound(self) -> float:
        """Bucket at which quick answers are counted, in seconds."""
        return names.nearest_bound(self.latency_seconds)

    def question(self, environment: str, seconds: float) -> Question:
        """Ask what it is measured by."""
        return Question(
            seconds=seconds,
            environment=environment,
            bound=self.bound,
            health=True,
            watched=True,
        )


def exposition(objective: Objective) -> str:
    """Write an objective in Prometheus' text format, for rules and dashboards to measure against.

    Its latency share carries the bucket in which quick answers are counted, as the histogram
    writes it.
    """
    return (
        f"# HELP {names.AVAILABILITY_OBJECTIVE} Promised share of predictions without an error.\n"
        f"# TYPE {names.AVAILABILITY_OBJECTIVE} gauge\n"
        f"{names.AVAILABILITY_OBJECTIVE} {objective.availability / 100:.12g}\n"
        f"# HELP {names.LATENCY_OBJECTIVE} Promised share of predictions that are so quick.\n"
        f"# TYPE {names.LATENCY_OBJECTIVE} gauge\n"
        f'{names.LATENCY_OBJECTIVE}{{le="{names.bound_text(objective.bound)}"}}'
        f" {objective.latency_share / 100:.12g}\n"
        f"# HELP {names.OBJECTIVE_WINDOW} Time over which both are promised.\n"
        f"# TYPE {names.OBJECTIVE_WINDOW} gauge\n"
        f"{names.OBJECTIVE_WINDOW} {objective.seconds:.12g}\n"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One promise and how far it was kept, in percent; always finite.

    ``attained`` is None where there was nothing to keep it by. ``budget_left`` is what is left of
    the errors that the promise allows: below zero it is broken. ``burn_rates`` say how many times
    faster than allowed they come. ``exhausted_in`` is how many seconds the rest lasts at the rate
    of the last hour, a trillion at most; None while nothing burns.
    """

    objective: float
    attained: float | None
    budget_left: float
    burn_rates: Mapping[str, float]
    exhausted_in: float | None

    def as_json(self) -> dict[str, Any]:
        """Give the part of the answer that it makes up."""
        found = {
            "objectivePercent": self.objective,
            "attainedPercent": self.attained,
            "budgetLeftPercent": self.budget_left,
            "burnRates": dict(self.burn_rates),
            "exhaustedInSeconds": self.exhausted_in,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an environment's objective stands."""

    environment: str
    objective: Objective
    availability: Level
    latency: Level
    counts: Counts
    watched: float
    """Share of the window in which the source looked at the deployment, in percent."""
    bases: Mapping[str, Basis]
    """By what the availability of each burn rate's window was judged."""

    def as_json(self) -> dict[str, Any]:
        """Give the part of the answer that it makes up."""
        latency = {
            "thresholdMs": 1000 * self.objective.latency_seconds,
            "countedAtMs": 1000 * self.objective.bound,
            **self.latency.as_json(),
        }
        return {
            "environment": self.environment,
            "window": durations.write(self.objective.seconds),
            "basis": self.counts.basis,
            "count": round(self.counts.total),
            "watchedPercent": self.watched,
            "availability": self.availability.as_json(),
            "latency": latency,
        }


def stand(
    environment: str,
    objective: Objective,
    whole: Reading,
    burning: Mapping[str, Reading],
) -> Standing:
    """Measure an objective by a reading of its window and by those of the burn rates."""
    available = {name: availability_of(reading) for name, reading in burning.items()}
    quick = {name: _quick(reading) for name, reading in burning.items()}
    counts = availability_of(whole)
    return Standing(
        environment=environment,
        objective=objective,
        availability=_level(objective.availability, objective.seconds, counts, available),
        latency=_level(objective.latency_share, objective.seconds, _quick(whole), quick),
        counts=counts,
        watched=min(100 * positive(whole.watched) / whole.seconds, 100.0),
        bases={name: found.basis for name, found in available.items()},
    )


def _quick(reading: Reading) -> Counts:
    # Of what the model was given: refusals are the availability's.
    total = positive(reading.timed)
    return Counts(total, max(total - positive(reading.quick), 0.0), "requests")


def _level(
    objective: float, seconds: float, counts: Counts, burning: Mapping[str, Counts]
) -> Level:
    allowed = 1 - objective / 100
    spent = counts.bad_share / allowed
    rates = {name: found.bad_share / allowed for name, found in burning.items()}
    rate = rates.get(EXHAUSTION, 0.0)
    left = 1 - spent
    exhausted_in = None
    if left <= 0:
        exhausted_in = 0.0
    elif rate > 0:
        exhausted_in = min(left * seconds / rate, FAR_SECONDS)
    return Level(
        objective=objective,
        attained=100 * (1 - counts.bad_share) if counts.total > 0 else None,
        budget_left=100 * left,
        burn_rates=rates,
        exhausted_in=exhausted_in,
    )
