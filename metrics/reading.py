"""What a source of figures is asked, and what it answers: sums and quantiles over one window.

Ratios are made of them in ``metrics.slo``, so that both sources share those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from metrics import names

STALE_SECONDS = 15.0
"""Age of the newest scrape from which figures are called stale: three of Prometheus' scrapes."""

# Scrapes do not fall into halves evenly.
_WHOLE = 0.85
# Lives of replicas that are shorter than a step of Prometheus' answer are missing from it.
_SKETCHED = 0.9
# What is missing of a window does not move its figures to speak of.
_AS_LONG = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A window of a run up to a moment, in seconds, and what is wanted of it.

    Requests by fault are always; ``quantiles`` of the duration; ``bound``, a bucket's, of the
    answers that took no longer; ``health`` is everything about scrapes and probes, ``recent``
    the scrapes of the window's second half; ``in_progress`` the mean of the requests under way;
    ``watched`` for how long the source looked. Without ``environment`` all of the run's together.
    """

    seconds: float
    environment: str | None = None
    quantiles: tuple[float, ...] = ()
    bound: float | None = None
    health: bool = False
    recent: bool = False
    in_progress: bool = False
    watched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The answer; None where the source has nothing.

    ``at`` and ``last_scrape_at`` in seconds since 1970, ``durations`` in seconds, in the order
    of the question's quantiles. Everything else is a number of its kind within the window:
    ``overloaded`` are among the ``errors``; ``timed`` are the requests that the model was given, which
    have a duration, ``sketched`` as many of these as the quantiles are made of,
    where those are not all, and ``quick`` those of them within the bound; ``up`` is the share of good scrapes of the
    replicas, ``scrapes`` their number, and ``recent_scrapes`` that of the second half.
    ``watched`` are the seconds of the window in which the source looked at the deployment, whether
    that answered or not, summed over the environments.
    """

    at: float
    seconds: float
    requests: float | None = None
    client_errors: float | None = None
    errors: float | None = None
    overloaded: float | None = None
    timed: float | None = None
    sketched: float | None = None
    quick: float | None = None
    durations: tuple[float | None, ...] = ()
    in_progress: float | None = None
    up: float | None = None
    scrapes: float | None = None
    recent_scrapes: float | None = None
    probes_passed: float | None = None
    probes_failed: float | None = None
    watched: float | None = None
    last_scrape_at: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the source knows nothing of the run: it was not scraped yet, or never."""
        return not positive(self.scrapes) and not positive(self.requests)

    @property
    def is_fresh(self) -> bool:
        """Whether the newest scrape is no older than one may be."""
        return self.last_scrape_at is not None and self.at - self.last_scrape_at <= STALE_SECONDS

    @property
    def is_sketchy(self) -> bool:
        """Whether too little of what has a duration is in the quantiles."""
        return self.sketched is not None and self.sketched < _SKETCHED * positive(self.timed)

    @property
    def is_whole(self) -> bool:
        """Whether the source watched the first half of the window as it did the second."""
        return positive(self.scrapes) + 1 >= 2 * _WHOLE * positive(self.recent_scrapes)

    def is_watched_like(self, watched: float) -> bool:
        """Whether the source looked for about as long as another one, in seconds."""
        return positive(self.watched) + cell_seconds(self.seconds) >= _AS_LONG * watched

    def is_watched_by(self, watched: float) -> bool:
        """Whether another one looked for about as long as this source, in seconds."""
        return watched >= _AS_LONG * positive(self.watched)


def cell_seconds(seconds: float) -> float:
    """Length of the cells of a window of which Prometheus is asked whether it looked in them.

    Three of its usual scrapes at least; short enough to find what is missing of the window.
    """
    return max(math.ceil(seconds / 288), 15.0)


Source = Literal["prometheus", "embedded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question, its answer, and who gave it."""

    question: Question
    reading: Reading
    source: Source


class Name(NamedTuple):
    """What a question is asked for: the page's own figures, or an environment's objective.

    ``part`` is ``red`` or ``slo``, or the name of a burn rate's window.
    """

    part: str
    environment: str = ""


RED, SLO = "red", "slo"


def requests_by_class(by_code: dict[str, float]) -> dict[str, float]:
    """Sum requests of the classes of their answers, in the order in which both sources do."""
    return {
        "requests": sum(by_code[code] for code in names.CODE_CLASSES if code in by_code),
        "client_errors": by_code.get(names.CLIENT_CLASS, 0.0),
        "errors": by_code.get(names.ERROR_CLASS, 0.0),
    }


def positive(value: float | None) -> float:
    """Return a finite number above zero, or zero."""
    return value if value is not None and math.isfinite(value) and value > 0 else 0.0
