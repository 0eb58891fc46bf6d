from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest

from metrics import names

ROOT = Path(__file__).resolve().parents[3]


def test_the_ladder_has_340_bounds_from_a_fifth_of_a_millisecond_to_a_minute() -> None:
    assert len(names.LATENCY_BOUNDS) == 340
    assert names.LATENCY_BOUNDS[0] == 0.0002
    assert names.LATENCY_BOUNDS[-3:] == (10.0, 30.0, 60.0)


def test_neighbouring_bounds_are_three_percent_apart_and_five_above_a_second() -> None:
    pairs = list(pairwise(names.LATENCY_BOUNDS[:-2]))
    ratios = {upper: upper / lower for lower, upper in pairs}

    assert max(ratio for upper, ratio in ratios.items() if upper <= 1.0) < 1.031
    assert max(ratios.values()) < 1.051
    assert min(ratios.values()) > 1


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


def test_the_documentation_has_every_metric_and_no_other() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    known = {*names.SERVICE_METRICS, names.REQUESTS, names.DURATION}
    known |= {names.IN_PROGRESS, names.MODEL_INFO, names.START_TIME}

    named = re.findall(r"`((?:persephone|inference|process)_[a-z_]+)`", text)
    assert set(named) - {"process_"} == known


def test_the_job_in_the_configuration_is_the_one_that_is_asked_for() -> None:
    text = (ROOT / "prometheus.yml").read_text()

    assert f"job_name: {names.MODELS_JOB}\n" in text
