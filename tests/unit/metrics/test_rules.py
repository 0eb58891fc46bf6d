"""The shipped rules by themselves; tests/e2e/test_rules.py runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from metrics import names
from tests.support import rule_files
from tests.support.dashboard_files import expressions
from tests.support.exposed import exposed, known_labels
from tests.support.promql import dict_of, grouping_labels, selectors, shortest_range

ROOT = Path(__file__).resolve().parents[3]
SECONDS = {"s": 1, "m": 60, "h": 3600}


def name_of(rule: dict[str, Any]) -> str:
    return "-".join([rule.get("record") or rule["alert"], *rule.get("labels", {}).values()])


def is_of_runs(rule: dict[str, Any]) -> bool:
    """Whether a rule is about deployments, and not about the machine."""
    return any(
        selector.name.startswith("run_environment:")
        or dict_of(selector.matchers).get("job") == names.MODELS_JOB
        for selector in selectors(rule["expr"])
    )


@pytest.mark.parametrize("rule", rule_files.rules(), ids=name_of)
def test_a_rule_asks_only_for_series_and_labels_that_there_are(rule: dict[str, Any]) -> None:
    known = rule_files.recorded() | set(exposed()) | {"ALERTS"}
    found = selectors(rule["expr"])
    labels: set[str] = set()

    for selector in found:
        assert selector.name in known
        labels |= known_labels(selector.name)
        assert {label for label, _, _ in selector.matchers} <= known_labels(selector.name)
    assert grouping_labels(rule["expr"]) <= labels
    # A constant, and nothing else, needs no series.
    assert found or rule["expr"].startswith("vector(")


@pytest.mark.parametrize("rule", rule_files.rules(), ids=name_of)
def test_a_window_holds_four_scrapes_of_a_prometheus_that_scrapes_once_a_minute(
    rule: dict[str, Any],
) -> None:
    assert (shortest_range(rule["expr"]) or 300) >= 4 * 60


def test_no_series_is_recorded_that_nobody_reads() -> None:
    asked = [rule["expr"] for rule in rule_files.rules()]
    asked += [expression.text for expression in expressions()]

    read = {selector.name for expression in asked for selector in selectors(expression)}
    assert rule_files.recorded() - read == set()


@pytest.mark.parametrize("rule", rule_files.alerts(), ids=name_of)
def test_an_alert_says_what_it_means_in_both_languages(rule: dict[str, Any]) -> None:
    texts = rule["annotations"]

    assert set(texts) == {"summary", "description", "summary_en", "description_en", "runbook_url"}
    for key in ("summary", "description"):
        russian, english = texts[key], texts[f"{key}_en"]
        assert re.search("[а-яё]", russian)
        assert not re.search("[а-яё]", english, re.IGNORECASE)
        placeholders = [set(re.findall(r"\$\w+(?:\.\w+)?", text)) for text in (russian, english)]
        assert placeholders[0] == placeholders[1]


@pytest.mark.parametrize("rule", rule_files.alerts(), ids=name_of)
def test_an_alert_says_whom_it_is_about(rule: dict[str, Any]) -> None:
    texts = rule["annotations"]

    for language in ("", "_en"):
        summary, whole = texts[f"summary{language}"], " ".join(texts.values())
        if is_of_runs(rule):
            assert "$labels.model" in summary
            assert "$labels.environment" in summary
            assert "$labels.run_id" in whole
        else:
            # A machine: there may be several.
            assert re.search(r"\$labels\.(instance|gpu)\b", summary)


@pytest.mark.parametrize("rule", rule_files.alerts(), ids=name_of)
def test_an_alert_says_where_it_is_explained(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    heads = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)

    assert anchor == rule["alert"].lower()
    assert rule["alert"] in heads


@pytest.mark.parametrize("rule", rule_files.alerts(), ids=name_of)
def test_an_alert_of_a_deployment_ends_with_it(rule: dict[str, Any]) -> None:
    """What looks at a time past, and would go on with it, asks whether the deployment is there."""
    if not is_of_runs(rule):
        return
    assert "keep_firing_for" not in rule
    assert {selector.name for selector in selectors(rule["expr"])} & {
        "up",
        "run_environment:inference_availability:objective",
        "run_environment:inference_latency:objective",
    }


@pytest.mark.parametrize("rule", rule_files.alerts(), ids=name_of)
def test_an_alert_wakes_somebody_or_waits_for_the_morning(rule: dict[str, Any]) -> None:
    severity = rule["labels"]["severity"]

    by_environment = '{{ if eq $labels.environment "prod" }}page{{ else }}ticket{{ end }}'
    by_lease = "{{ if $labels.run_id }}page{{ else }}ticket{{ end }}"
    assert severity in {"page", "ticket", by_environment, by_lease}
    if severity == by_environment:
        asked = {selector.name for selector in selectors(rule["expr"])}
        by_run = all("environment" in known_labels(name) for name in asked)
        assert by_run or "environment" in grouping_labels(rule["expr"])


def test_every_alert_fires_in_a_scenario_and_is_quiet_in_another() -> None:
    known = {rule["alert"] for rule in rule_files.alerts()}
    told: set[str] = set()
    quiet: set[str] = set()
    for path in (ROOT / "tests" / "e2e" / "rules").glob("*.yml"):
        for scenario in yaml.safe_load(path.read_text())["tests"]:
            asked = scenario.get("promql_expr_test", []) + scenario.get("alert_rule_test", [])
            named = set(re.findall(r"Persephone\w+", repr(asked)))
            expected = re.findall(r"Persephone\w+", repr([one.get("exp_samples") for one in asked]))
            described = {one["alertname"] for one in asked if one.get("exp_alerts")}
            told |= {*expected, *described}
            # All others were expected to be silent.
            quiet |= known - named if any(one.get("expr") == "ALERTS" for one in asked) else set()

    assert told >= known
    assert quiet >= known


def test_the_pieces_of_the_long_windows_touch() -> None:
    (group,) = (group for group in rule_files.groups() if group["name"] == "persephone-slo")
    parts = re.findall(r"(\d+)([smh])", group["interval"])
    seconds = sum(int(number) * SECONDS[unit] for number, unit in parts)

    assert 300 % seconds == 0


def test_the_operators_page_lists_every_alert_and_no_other() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| \[`(Persephone\w+)`\]\(#persephone\w+\) \|", table, re.MULTILINE)

    assert sorted(listed) == sorted({rule["alert"] for rule in rule_files.alerts()})


def alternatives(pattern: str) -> list[str]:
    """What a pattern of a fixed start and a choice stands for."""
    start, _, choice = pattern.removesuffix(")").partition("(")
    return [start + one for one in choice.split("|")]


def test_the_example_of_alertmanager_names_alerts_that_there_are() -> None:
    example = yaml.safe_load((ROOT / "examples" / "alertmanager" / "alertmanager.yml").read_text())
    matchers = [
        matcher
        for rule in example["inhibit_rules"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"])
    ]
    known = {rule["alert"] for rule in rule_files.alerts()}
    named = re.findall(r'alertname(!?=~?)"([^"]+)"', " ".join(matchers))

    assert len(named) > len(example["inhibit_rules"])
    for _, pattern in named:
        for name in alternatives(pattern):
            assert any(re.fullmatch(name, one) for one in known), name
