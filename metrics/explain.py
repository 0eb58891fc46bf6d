"""How each figure of a summary came about: its PromQL, its window, its samples, their age."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from metrics import durations, names
from metrics.objectives import BURN_SECONDS, EXHAUSTION, FAR_SECONDS
from metrics.promql import Series, quote
from metrics.reading import RED, SLO, Name, positive
from metrics.slo import QUANTILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from metrics.objectives import Standing
    from metrics.reading import Asked
    from metrics.slo import Basis, Summary


def explain(
    run_id: str,
    summary: Summary,
    standings: Sequence[Standing],
    asked: Mapping[Name, Asked],
    now: float,
) -> dict[str, Any]:
    """Explain every figure that is shown, by its place in the summary.

    The PromQL can be run on Prometheus as it stands and gives the figure itself; where nothing is
    divided by nothing it gives NaN for the zero that is shown.
    """
    if not asked:
        return {}
    found: dict[str, Any] = {}
    red = _Expressions(Series(run_id, asked[Name(RED)].question))
    slo = _Expressions(Series(run_id, asked[Name(SLO)].question))
    for figure, promql in {
        "red.rps": red.rps(),
        "red.errorsPercent": red.share(red.errors()),
        "errorsByFault.clientPercent": red.share(red.client_errors()),
        "errorsByFault.modelPercent": red.share(f"({red.errors()} - {red.overloaded()})"),
        "errorsByFault.overloadPercent": red.share(red.overloaded()),
    }.items():
        found[figure] = _explained(promql, asked[Name(RED)], now)
    found["red.p95DurationMs"] = _explained(red.quantile(), asked[Name(RED)], now, timed=True)
    found["slo.availability"] = _explained(slo.good_share(summary.basis), asked[Name(SLO)], now)
    found["slo.latencyP95Ms"] = _explained(slo.quantile(), asked[Name(SLO)], now, timed=True)
    for standing in standings:
        found.update(_objective(run_id, standing, asked, now))
    return found


def _objective(
    run_id: str, standing: Standing, asked: Mapping[Name, Asked], now: float
) -> dict[str, Any]:
    objective, environment = standing.objective, standing.environment
    whole, hour = asked[Name(SLO, environment)], asked[Name(EXHAUSTION, environment)]
    found: dict[str, Any] = {}
    for kind, level, basis in (
        ("availability", standing.availability, standing.counts.basis),
        ("latency", standing.latency, None),
    ):
        base = f"objectives.{environment}.{kind}"
        allowed = f"{1 - level.objective / 100:.12g}"
        for name in BURN_SECONDS:
            part = asked[Name(name, environment)]
            rate = f"{_bad(run_id, part, basis and standing.bases[name])} / {allowed}"
            found[f"{base}.burnRates.{name}"] = _explained(rate, part, now, timed=not basis)
        bad = _bad(run_id, whole, basis)
        if level.attained is not None:
            found[f"{base}.attainedPercent"] = _explained(
                f"100 * (1 - {bad})", whole, now, timed=not basis
            )
        left = f"1 - {bad} / {allowed}"
        found[f"{base}.budgetLeftPercent"] = _explained(
            f"100 * ({left})", whole, now, timed=not basis
        )
        if level.exhausted_in is not None:
            # Two windows that may be of two moments.
            used = basis and standing.bases[EXHAUSTION]
            left = f"1 - {_bad(run_id, whole, basis, pinned=True)} / {allowed}"
            rate = f"{_bad(run_id, hour, used, pinned=True)} / {allowed}"
            lasts = f"({left}) * {objective.seconds:g} / ({rate})"
            found[f"{base}.exhaustedInSeconds"] = _explained(
                f"clamp({lasts}, 0, {FAR_SECONDS:g})", whole, now, timed=not basis
            )
    return found


def _bad(run_id: str, asked: Asked, basis: Basis | None, *, pinned: bool = False) -> str:
    """Write the share of the bad ones; without a basis those are the slow answers.

    ``pinned`` writes the moment of the answer with it.
    """
    at = asked.reading.at if pinned else None
    expressions = _Expressions(Series(run_id, asked.question, at=at))
    return expressions.slow_share() if basis is None else expressions.bad_share(basis)


def _explained(promql: str, asked: Asked, now: float, *, timed: bool = False) -> dict[str, Any]:
    """Explain a figure; ``timed`` ones rest on the requests that have a duration."""
    reading = asked.reading
    found = {
        "promql": promql,
        "window": durations.write(reading.seconds),
        "at": datetime.fromtimestamp(reading.at, UTC),
        "samples": round(positive(reading.scrapes)),
        "requests": round(positive(reading.timed if timed else reading.requests)),
        "source": asked.source,
    }
    if reading.watched is not None:
        found["watchedSeconds"] = round(reading.watched, 3)
    if reading.last_scrape_at is not None:
        found["ageSeconds"] = round(max(now - reading.last_scrape_at, 0.0), 3)
    return found


class _Expressions:
    """PromQL of whole figures, as one would type it."""

    def __init__(self, series: Series) -> None:
        self._series = series

    def rps(self) -> str:
        series = self._series
        return f"sum(rate({series.of(names.REQUESTS)}{series.window}))"

    def requests(self) -> str:
        return f"sum({self._series.requests()})"

    def client_errors(self) -> str:
        return f"sum({self._series.requests(f'code={quote(names.CLIENT_CLASS)}')})"

    def errors(self) -> str:
        return f"sum({self._series.errors()})"

    def overloaded(self) -> str:
        return f"sum({self._series.overloaded()})"

    def share(self, of: str) -> str:
        return f"100 * {of} / {self.requests()}"

    def quantile(self) -> str:
        return f"1000 * {self._series.quantile(QUANTILE)}"

    def good_share(self, basis: Basis) -> str:
        return f"100 * (1 - {self.bad_share(basis)})"

    def bad_share(self, basis: Basis) -> str:
        series = self._series
        if basis == "requests":
            return f"({self.errors()} / {self.requests()})"
        if basis == "probes":
            failed = series.probes(f"result={quote(names.PROBE_RESULTS[1])}")
            return f"(sum({failed}) / sum({series.probes()}))"
        good, all_of_them = map(series.scrapes, ("sum_over_time", "count_over_time"))
        return f"(1 - sum({good}) / sum({all_of_them}))"

    def slow_share(self) -> str:
        bound = self._series.question.bound
        assert bound is not None  # noqa: S101 - objectives are asked with one
        return f"(1 - sum({self._series.quick(bound)}) / sum({self._series.timed()}))"
