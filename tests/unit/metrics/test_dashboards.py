"""Grafana's dashboards by themselves; tests/e2e/test_dashboards.py asks them of a Prometheus."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from metrics.dashboards.pages import written
from tests.support import rule_files
from tests.support.dashboard_files import FOLDER, dashboards, expressions, filled, panels
from tests.support.exposed import exposed, known_labels
from tests.support.promql import grouping_labels, selectors, shortest_range

ROOT = Path(__file__).resolve().parents[3]
UNITS = {value for value in vars(units).values() if isinstance(value, str)}
# Terms that people here say in English.
TERMS = {"RPS", "p95", "GPU", "XID", "API", "SLO", "Burn rate", "p50", "p99"}


def every_panel() -> list[Any]:
    return [
        pytest.param(panel, id=f"{page['uid']}: {panel['title']}")
        for page in dashboards().values()
        for panel in panels(page)
    ]


def test_the_committed_files_are_what_the_code_builds() -> None:
    assert {path.name for path in FOLDER.glob("*.json")} == set(written())
    for name, text in written().items():
        assert (FOLDER / name).read_text() == text, f"make dashboards writes {name} anew"


@pytest.mark.parametrize("name", written())
def test_a_file_is_a_dashboard_that_reads_back_unchanged(name: str) -> None:
    text = (FOLDER / name).read_text()
    page = Dashboard.from_json(json.loads(text))

    again = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(page)
    assert json.loads(again) == json.loads(text)


def test_no_two_pages_or_panels_are_the_same() -> None:
    pages = dashboards()

    assert [page["uid"] + ".json" for page in pages.values()] == list(pages)
    assert len({page["title"] for page in pages.values()}) == len(pages) == 5
    for page in pages.values():
        ids = Counter(panel["id"] for panel in panels(page))
        assert ids.most_common(1)[0][1] == 1, page["uid"]


def test_panels_lie_side_by_side() -> None:
    for page in dashboards().values():
        taken: set[tuple[int, int]] = set()
        for panel in panels(page):
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert max(x for x, _ in cells) < 24, panel["title"]
            assert not cells & taken, panel["title"]
            taken |= cells


@pytest.mark.parametrize("expression", expressions(), ids=str)
def test_an_expression_asks_only_for_series_and_labels_that_there_are(expression: Any) -> None:
    known = rule_files.recorded() | set(exposed()) | {"ALERTS"}
    labels: set[str] = set()
    for selector in selectors(expression.text):
        assert selector.name in known
        labels |= known_labels(selector.name)
        assert {label for label, _, _ in selector.matchers} <= known_labels(selector.name)

    assert labels
    assert grouping_labels(expression.text) <= labels
    assert set(re.findall(r"{{(\w+)}}", expression.legend)) <= labels
    assert set(expression.labels) <= labels
    assert "$" not in expression.text


@pytest.mark.parametrize("panel", every_panel())
def test_a_window_is_grafanas_or_holds_four_scrapes_a_minute_apart(panel: dict[str, Any]) -> None:
    for target in panel.get("targets", []):
        # Grafana takes four scrapes, of the interval that its data source is told.
        written = target["expr"].replace("$__rate_interval", "4m")
        assert (shortest_range(filled(written)) or 300) >= 4 * 60


@pytest.mark.parametrize("panel", every_panel())
def test_a_panel_says_what_it_shows_in_russian_and_in_a_unit_that_there_is(
    panel: dict[str, Any],
) -> None:
    assert re.search("[А-Яа-яё]", panel["title"]) or panel["title"] in TERMS
    assert not panel.get("description") or re.search("[А-Яа-яё]", panel["description"])
    config = panel.get("fieldConfig", {})
    used = {config.get("defaults", {}).get("unit")}
    used |= {panel.get("options", {}).get("yAxis", {}).get("unit")}
    for override in config.get("overrides", []):
        used |= {one["value"] for one in override["properties"] if one["id"] == "unit"}
    assert used - {None} <= UNITS


@pytest.mark.parametrize("panel", every_panel())
def test_every_query_goes_to_the_source_that_was_chosen(panel: dict[str, Any]) -> None:
    for part in (panel, *panel.get("targets", [])):
        if part.get("type") != "row":
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_variable_that_is_used_can_be_chosen() -> None:
    for page in dashboards().values():
        offered = {variable["name"] for variable in page["templating"]["list"]}
        asked = {target["expr"] for panel in panels(page) for target in panel.get("targets", [])}
        used = set(re.findall(r"\$(\w+)", " ".join(asked))) - {"__rate_interval"}
        assert used | {"datasource"} == offered, page["uid"]
        for variable in page["templating"]["list"]:
            if variable["type"] == "query":
                assert selectors(
                    filled(variable["query"]["query"].partition("(")[2][:-1].rpartition(", ")[0])
                )


def test_the_pages_of_one_another_can_be_reached() -> None:
    for page in dashboards().values():
        assert page["tags"] == ["persephone"]
        assert [link["tags"] for link in page["links"]] == [["persephone"]]


# ── the provisioning


def compose(service: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found[service]


def mounts(service: str) -> dict[str, Path]:
    """Path in the container -> path here, of what is mounted from here."""
    found = (volume.split(":") for volume in compose(service)["volumes"])
    return {target: ROOT / source for source, target, *_ in found if source.startswith(".")}


def provisioned(kind: str) -> dict[str, Any]:
    (path,) = mounts("grafana")[f"/etc/grafana/provisioning/{kind}"].iterdir()
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def test_what_compose_mounts_is_there() -> None:
    for service in ("prometheus", "grafana"):
        assert all(path.exists() for path in mounts(service).values())


def test_prometheus_follows_the_service_into_its_network() -> None:
    prometheus = compose("prometheus")

    assert prometheus["network_mode"] == "service:persephone"
    assert prometheus["depends_on"]["persephone"]["restart"]


def test_grafana_finds_its_data_source_on_the_first_start() -> None:
    (source,) = provisioned("datasources")["datasources"]

    assert (source["type"], source["uid"], source["isDefault"]) == (
        "prometheus",
        "prometheus",
        True,
    )
    variable = source["url"].removeprefix("$")
    assert compose("grafana")["environment"][variable] == "http://persephone:9090"
    config = yaml.safe_load((ROOT / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_grafana_finds_the_dashboards_on_the_first_start() -> None:
    (provider,) = provisioned("dashboards")["providers"]
    path = provider["options"]["path"]

    assert mounts("grafana")[path] == FOLDER
    home = compose("grafana")["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / home.removeprefix(f"{path}/")).exists()


def test_prometheus_finds_the_rules_and_keeps_the_month_that_they_look_at() -> None:
    config = yaml.safe_load((ROOT / "prometheus.yml").read_text())
    (pattern,) = config["rule_files"]

    assert sorted(ROOT.glob(pattern)) == sorted(rule_files.FOLDER.glob("*.yml"))
    target = f"/etc/prometheus/{Path(pattern).parent}"
    assert mounts("prometheus")[target] == rule_files.FOLDER
    (kept,) = (
        int(option.removeprefix("--storage.tsdb.retention.time=").removesuffix("d"))
        for option in compose("prometheus")["command"]
        if "retention" in option
    )
    assert kept > 30
