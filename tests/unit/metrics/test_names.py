from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest

from metrics import names
from tests.support import rule_files
from tests.support.exposed import exposed

ROOT = Path(__file__).resolve().parents[3]


def test_the_ladder_has_351_bounds_from_a_fifth_of_a_millisecond_to_a_minute() -> None:
    assert len(names.LATENCY_BOUNDS) == len(set(names.LATENCY_BOUNDS)) == 351
    assert list(names.LATENCY_BOUNDS) == sorted(names.LATENCY_BOUNDS)
    assert names.LATENCY_BOUNDS[0] == 0.0002
    assert names.LATENCY_BOUNDS[-3:] == (10.0, 30.0, 60.0)


def test_neighbouring_bounds_are_three_percent_apart_and_five_above_a_second() -> None:
    pairs = list(pairwise(names.LATENCY_BOUNDS[:-2]))
    ratios = {upper: upper / lower for lower, upper in pairs}

    assert max(ratio for upper, ratio in ratios.items() if upper <= 1.0) < 1.031
    assert max(ratios.values()) < 1.051
    assert min(ratios.values()) > 1


def test_thresholds_that_people_set_are_bounds_themselves() -> None:
    for seconds in (0.001, 0.0075, 0.02, 0.05, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0, 2.5, 10.0, 30.0):
        assert names.nearest_bound(seconds) == seconds
    assert names.nearest_bound(0.1234) == pytest.approx(0.1234, rel=0.016)
    assert names.nearest_bound(1e-9) == names.LATENCY_BOUNDS[0]
    assert names.nearest_bound(1e9) == 60.0


def test_every_bound_is_written_with_a_point_and_reads_back() -> None:
    for bound in names.LATENCY_BOUNDS:
        text = names.bound_text(bound)
        assert "." in text
        assert float(text) == bound
    assert names.bound_text(math.inf) == "+Inf"


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, "2xx"), (304, "2xx"), (400, "4xx"), (499, "4xx"), (500, "5xx"), (503, "5xx")],
)
def test_a_status_belongs_to_one_of_three_classes(status: int, expected: str) -> None:
    assert names.code_class(status) == expected


PAGE = ROOT / "docs" / "metrics.md"
WINDOW = re.compile(r"\d+[mhd]$")


def test_the_documentation_has_every_metric_that_is_exposed_and_no_other() -> None:
    ends = re.compile(r"_(bucket|count|sum)$")
    histograms = {ends.sub("", name) for name in exposed() if name.endswith("_bucket")}
    plain = {name for name in exposed() if ends.sub("", name) not in histograms}
    # Those of the process are named as a whole.
    known = {
        name
        for name in plain | histograms
        if name == names.START_TIME or not name.startswith(("process_", "python_", "up"))
    }

    named = re.findall(r"`((?:persephone|inference|process|DCGM)_[A-Za-z_]+)`", PAGE.read_text())
    assert set(named) - {"process_"} == known


def test_every_name_that_the_code_has_is_exposed() -> None:
    values = {
        value
        for key, value in vars(names).items()
        if key.isupper() and isinstance(value, str) and "_" in value
    }

    assert {name for name in values if name not in exposed()} == {
        names.DURATION,
        names.HTTP_DURATION,
        names.PREPARE_STEP_DURATION,
        names.DEPLOY_DURATION,
        names.RECONCILE_DURATION,
        names.SCRAPE_DURATION,
    }
    assert {*names.SERVICE_METRICS, *names.GPU_METRICS} <= values


def test_the_documentation_has_every_series_that_the_rules_record_and_no_other() -> None:
    named: set[str] = set()
    for names_, windows in re.findall(
        r"((?:`run_environment\w*:[\w:]+`(?:, )?)+)(?: \(((?:`\w+`(?:, )?)+)\))?", PAGE.read_text()
    ):
        for name in re.findall(r"`([^`]+)`", names_):
            further = re.findall(r"`(\w+)`", windows)
            named |= {name, *(WINDOW.sub(window, name) for window in further)}

    assert named == rule_files.recorded()


def test_the_job_in_the_configuration_is_the_one_that_is_asked_for() -> None:
    text = (ROOT / "prometheus.yml").read_text()

    assert f"job_name: {names.MODELS_JOB}\n" in text
