"""Every expression of every dashboard, asked of a real Prometheus that is full of data."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from metrics.client import PrometheusClient
from metrics.objectives import Objective, stand
from metrics.slo import red_question, slo_question, summarise
from tests.support import dashboard_files, monitored_past, prometheus_server, rule_files
from tests.support.dashboard_files import Choice, Expression, choices, expressions

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rules = rule_files.FOLDER / "recording.yml"
    config, data = monitored_past.write(tmp_path_factory.mktemp("past"), rules)
    with prometheus_server.running(config, data) as url:
        yield url


def ask(prometheus: str, path: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode(parameters)
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{query}", timeout=60) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        pytest.fail(json.load(error)["error"])


def series(prometheus: str, expression: Expression) -> list[tuple[dict[str, str], list[float]]]:
    """What the expression returns as a panel asks it: the labels and values of each series."""
    end = monitored_past.END
    if expression.is_instant:
        found = ask(prometheus, "query", query=expression.text, time=f"{end:.0f}")["result"]
    else:
        span = {"start": f"{end - 900:.0f}", "end": f"{end:.0f}", "step": "15"}
        found = ask(prometheus, "query_range", query=expression.text, **span)["result"]
    return [
        (one["metric"], [float(value) for _, value in one.get("values") or [one["value"]]])
        for one in found
    ]


@pytest.mark.parametrize("expression", expressions(), ids=str)
def test_an_expression_shows_something_and_all_of_it_is_finite(
    prometheus: str, expression: Expression
) -> None:
    found = series(prometheus, expression)

    assert found
    assert all(math.isfinite(value) for _, values in found for value in values)
    labels = {name for metric, _ in found for name in metric}
    # What stands in a legend or heads a column is there in at least one of them.
    assert set(re.findall(r"{{(\w+)}}", expression.legend)) <= labels
    assert set(expression.labels) <= labels
    # Nobody could tell two lines of one name apart.
    if expression.legend:
        shown = [legend(expression.legend, metric) for metric, _ in found]
        assert len(set(shown)) == len(shown), shown


def legend(template: str, metric: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda match: metric.get(match[1], ""), template)


@pytest.mark.parametrize("choice", choices(), ids=str)
def test_a_variable_has_something_to_choose(prometheus: str, choice: Choice) -> None:
    end = monitored_past.END
    span = {"start": f"{end - 900:.0f}", "end": f"{end:.0f}"}

    assert ask(prometheus, f"label/{choice.label}/values", **{"match[]": choice.selector}, **span)


# ── the same figures as the page's


def number(prometheus: str, title: str, run: str) -> float:
    """What the page "model" shows under a title of its first row, with one run chosen."""
    panels = dashboard_files.panels(dashboard_files.dashboards()["persephone-model.json"])
    (panel,) = (one for one in panels if one["title"] == title and one["type"] == "stat")
    ((_, (found,)),) = series(
        prometheus, shown(panel["targets"][0]["expr"].replace("$run_id", run))
    )
    return found


def column(prometheus: str, page: str, title: str, run: str) -> float:
    """What a table shows under a heading in the row of a run."""
    for panel in dashboard_files.panels(dashboard_files.dashboards()[f"persephone-{page}.json"]):
        if panel["type"] != "table":
            continue
        (naming,) = (one for one in panel["transformations"] if one["id"] == "organize")
        for value, heading in naming["options"]["renameByName"].items():
            if heading == title:
                target = panel["targets"][ord(value[-1]) - ord("A")]
                rows = series(prometheus, shown(target["expr"]))
                (found,) = (values[0] for labels, values in rows if labels["run_id"] == run)
                return found
    raise AssertionError(title)


def shown(text: str) -> Expression:
    return Expression("", "", dashboard_files.filled(text), "", True, ())


BUSY = "run-wine"


@pytest.mark.parametrize("run", [BUSY, *(f"run-{model}" for model in monitored_past.QUIET)])
async def test_a_model_has_the_figures_that_the_summary_makes_of_this_prometheus(
    prometheus: str, run: str
) -> None:
    objective = Objective(availability=95.0, latency_seconds=0.03)
    environment = "prod" if run == BUSY else "dev"
    whole = float(monitored_past.SECONDS)
    questions = [
        red_question(None, 300.0),
        slo_question(None, whole),
        objective.question(environment, whole),
        objective.question(environment, 3600.0),
    ]
    async with aiohttp.ClientSession() as session:
        client = PrometheusClient(session, prometheus, timeout=20)
        readings = await client.read(run, questions, monitored_past.END)
    summary = summarise(readings[0], readings[1])
    level = stand(environment, objective, readings[2], {"1h": readings[3]}).availability

    def close(value: float) -> Any:
        # Long windows are made of pieces there, and of the samples themselves here.
        return pytest.approx(value, rel=0.05, abs=0.005)

    assert number(prometheus, "RPS", run) == close(summary.rps)
    assert number(prometheus, "Ошибки", run) == close(summary.errors_percent / 100)
    assert number(prometheus, "p95", run) == close(summary.p95_duration_ms / 1000)
    assert number(prometheus, "Доступность, 30 д", run) == close(summary.availability / 100)
    if run != BUSY:
        assert column(prometheus, "overview", "p95", run) == close(summary.p95_duration_ms / 1000)
    assert level.attained is not None
    assert column(prometheus, "overview", "Доступность, 30 д", run) == close(level.attained / 100)
    assert column(prometheus, "slo", "Достигнуто", run) == close(level.attained / 100)
    left = level.budget_left / 100
    assert column(prometheus, "slo", "Остаток бюджета", run) == pytest.approx(
        left, rel=0.1, abs=0.15
    )
    burning = level.burn_rates["1h"]
    assert column(prometheus, "slo", "Burn 1h", run) == pytest.approx(burning, rel=0.05, abs=0.1)


def test_quiet_models_are_judged_by_what_there_is(prometheus: str) -> None:
    """What the comparison above would also find if nothing was shown of them."""
    probed, scraped, refused = (f"run-{model}" for model in monitored_past.QUIET)

    assert number(prometheus, "Доступность, 30 д", probed) == pytest.approx(2 / 3, abs=0.05)
    assert number(prometheus, "Доступность, 30 д", scraped) == pytest.approx(2 / 3, abs=0.05)
    assert number(prometheus, "Доступность, 30 д", refused) == 0
    assert number(prometheus, "Ошибки", refused) == 1
    assert number(prometheus, "Отвечают реплик", refused) == 0
    assert number(prometheus, "Отвечают реплик", probed) == 1


def test_the_figures_of_the_table_are_those_that_were_written(prometheus: str) -> None:
    def value(text: str) -> float:
        expression = Expression("", "", text, "", True, ())
        ((_, (found,)),) = series(prometheus, expression)
        return found

    run = 'run_id="run-wine", environment="prod"'
    # Two replicas of 40 requests every 15 s, and half a refusal.
    rate = value(f"run_environment:inference_requests:rate5m{{{run}}}")
    assert rate == pytest.approx(80 / 15, rel=0.02)
    ratio = value(f"run_environment:inference_errors:ratio_rate5m{{{run}}}")
    assert ratio == pytest.approx(0.01 + 0.5 / 80, abs=0.01)
    month = value(f"run_environment:inference_requests:increase30d{{{run}}}")
    assert month == pytest.approx(80 / 15 * monitored_past.SECONDS, rel=0.25)
    burnt = value(f"run_environment:inference_errors:ratio_rate30d{{{run}}}")
    assert burnt == pytest.approx(0.016, abs=0.008)
    # A sixth of the lognormal durations, whose median is 18 ms, is above 30 ms.
    for window in ("5m", "1h"):
        slow = value(f"run_environment:inference_slow:ratio_rate{window}{{{run}}}")
        assert slow == pytest.approx(0.16, abs=0.02)
