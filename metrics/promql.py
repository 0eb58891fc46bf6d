"""The PromQL of questions, as text: sums and quantiles only, many of them in one query.

Increases come before sums, and quantiles after them: a restart of one replica must not look
like traffic of another.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from metrics import durations, names
from metrics.reading import cell_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metrics.reading import Question

READING = "reading"
"""Label that tells the values of the one answer apart: number of the question, name of the value."""

LONG_SECONDS = 6 * 3600.0
"""Window above which a quantile looks at some samples only: all buckets of a replica over a
month are a hundred million samples, more than Prometheus reads for one query."""

# How long a window's newest piece is, of which every sample is looked at, and the one before it.
_RECENT_SECONDS = 3600.0
_MIDDLE_SECONDS = 86_400.0
_STEPS = 288
_LEAST_STEP = 300.0
_PIECE = "piece"


def quote(value: str) -> str:
    """Write a string literal; PromQL reads those as Go does, JSON's escapes among them."""
    return json.dumps(value, ensure_ascii=False)


def query(run_id: str, questions: Sequence[Question]) -> str:
    """Ask several questions about a run at once.

    What Prometheus has nothing for is missing in the answer.
    """
    return "\nor ".join(
        f'label_replace({expression}, "{READING}", "{number}.{name}", "{READING}", "")'
        for number, question in enumerate(questions)
        for name, expression in _parts(Series(run_id, question)).items()
    )


class Series:
    """The series of a question and how PromQL names them; ``figures`` are made of these.

    Windows end when they are asked for, or ``at`` a time in seconds since 1970.
    """

    def __init__(self, run_id: str, question: Question, *, at: float | None = None) -> None:
        self._chosen = [f"job={quote(names.MODELS_JOB)}", f"run_id={quote(run_id)}"]
        if question.environment is not None:
            self._chosen.append(f"environment={quote(question.environment)}")
        self.question = question
        self._at = "" if at is None else f" @ {at:.3f}"
        self._range = durations.write(question.seconds)
        self.window = f"[{self._range}]{self._at}"

    def of(self, name: str, *more: str) -> str:
        """Select a metric's series."""
        return f"{name}{{{','.join((*self._chosen, *more))}}}"

    def requests(self, *more: str) -> str:
        """Count requests."""
        return f"increase({self.of(names.REQUESTS, *more)}{self.window})"

    def errors(self) -> str:
        """Count errors."""
        return self.requests(f"code={quote(names.ERROR_CLASS)}")

    def overloaded(self) -> str:
        """Count those of the errors that were overload."""
        return f"increase({self.of(names.OVERLOADED)}{self.window})"

    def timed(self) -> str:
        """Count the requests that have a duration."""
        return self.quick(math.inf)

    def quick(self, bound: float) -> str:
        """Count those of them that took no longer."""
        le = f"le={quote(names.bound_text(bound))}"
        return f"increase({self.of(f'{names.DURATION}_bucket', le)}{self.window})"

    def quantile(self, quantile: float) -> str:
        """Compute a quantile of the durations, in seconds."""
        return f"histogram_quantile({quantile:g}, sum by (le) ({self._growth()}))"

    def sketched(self) -> str:
        """Count the durations that the quantiles of a long window are made of."""
        return f"sum({self._growth(f'le={quote(names.bound_text(math.inf))}')})"

    def probes(self, *more: str) -> str:
        """Count probes."""
        return f"increase({self.of(names.PROBES, *more)}{self.window})"

    def up(self) -> str:
        """Select the scrapes of replicas: the service itself can always be scraped."""
        return self.of("up", f"replica!={quote(names.GATEWAY_REPLICA)}")

    def scrapes(self, function: str, seconds: float | None = None) -> str:
        """Look at the scrapes of replicas, in the window or in the last ``seconds``."""
        window = self.window if seconds is None else f"[{durations.write(seconds)}]{self._at}"
        return f"{function}({self.up()}{window})"

    def watched(self) -> str:
        """Sum the seconds of the window in which the service's own target was scraped.

        That one is there as long as the deployment is wanted. Cells of the window are counted, as
        their scrapes would have to be compared with an interval that is Prometheus' own affair.
        """
        seconds = self.question.seconds
        cell = cell_seconds(seconds)
        up = self.of("up", f"replica={quote(names.GATEWAY_REPLICA)}")
        seen = f"count by (environment) (count_over_time({up}[{durations.write(cell)}]))"
        share = f"count_over_time({seen}[{self._range}:{durations.write(cell)}]{self._at})"
        return f"sum(clamp_max({share} / {max(seconds // cell, 1):g}, 1)) * {seconds:.12g}"

    def in_progress(self) -> str:
        """Average the requests under way."""
        return f"avg_over_time({self.of(names.IN_PROGRESS)}{self.window})"

    def _growth(self, *more: str) -> str:
        """Count the durations by bucket: in a long window the older they are, the fewer samples.

        A replica that began within the window shows in the samples after that only, so the newest
        ones are looked at closely: it may be all there is.
        """
        buckets = self.of(f"{names.DURATION}_bucket", *more)
        seconds = self.question.seconds
        if seconds <= LONG_SECONDS:
            return f"rate({buckets}{self.window})"
        middle = min(seconds - _RECENT_SECONDS, _MIDDLE_SECONDS)
        left = seconds - _RECENT_SECONDS - middle
        pieces = [
            f"[{durations.write(_RECENT_SECONDS)}]{self._at}",
            self._piece(middle, _LEAST_STEP, _RECENT_SECONDS),
        ]
        if left > 0:
            step = max(left / _STEPS, _LEAST_STEP)
            pieces.append(self._piece(left, step, _RECENT_SECONDS + middle))
        # The same series of two pieces are told apart by a label, or one would hide the other.
        return " or ".join(
            f'label_replace(increase({buckets}{piece}), "{_PIECE}", "{number}", "{_PIECE}", "")'
            for number, piece in enumerate(pieces)
        )

    def _piece(self, seconds: float, step: float, offset: float) -> str:
        """Write a range of samples ``step`` seconds apart that ended ``offset`` seconds ago."""
        length, apart, ago = map(durations.write, (seconds, step, offset))
        return f"[{length}:{apart}]{self._at} offset {ago}"


def _parts(series: Series) -> dict[str, str]:
    question = series.question
    parts = {
        "requests": f"sum by (code) ({series.requests()})",
        "overloaded": f"sum({series.overloaded()})",
    }
    if question.quantiles or question.bound is not None:
        parts["timed"] = f"sum({series.timed()})"
    if question.bound is not None:
        parts["quick"] = f"sum({series.quick(question.bound)})"
    for number, quantile in enumerate(question.quantiles):
        parts[f"durations.{number}"] = series.quantile(quantile)
    if question.quantiles and question.seconds > LONG_SECONDS:
        parts["sketched"] = series.sketched()
    if question.health:
        parts["good_scrapes"] = f"sum({series.scrapes('sum_over_time')})"
        parts["scrapes"] = f"sum({series.scrapes('count_over_time')})"
        parts["last_scrape_at"] = f"max(timestamp({series.up()}))"
        parts["probes"] = f"sum by (result) ({series.probes()})"
    if question.watched:
        parts["watched"] = series.watched()
    if question.recent:
        half = series.scrapes("count_over_time", question.seconds / 2)
        parts["recent_scrapes"] = f"sum({half})"
    if question.in_progress:
        parts["in_progress"] = f"sum({series.in_progress()})"
    return parts
