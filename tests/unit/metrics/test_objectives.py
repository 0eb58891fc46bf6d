from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from metrics import names
from metrics.objectives import BURN_SECONDS, FAR_SECONDS, Objective, exposition, stand
from metrics.reading import Reading
from tests.support.readings import READING

NOW = 1_700_000_000.0
PROD = Objective(availability=99.9, latency_seconds=0.5, latency_share=99.0)
CALM = Reading(
    at=NOW,
    seconds=3600,
    requests=10_000.0,
    errors=0.0,
    timed=10_000.0,
    quick=10_000.0,
    up=1.0,
    scrapes=100,
)


def burning(**readings: Reading) -> dict[str, Reading]:
    return {name: readings.get(f"w{name}", CALM) for name in BURN_SECONDS}


def test_without_errors_the_whole_budget_is_left() -> None:
    standing = stand("prod", PROD, CALM, burning())

    for level in (standing.availability, standing.latency):
        assert (level.attained, level.budget_left, level.exhausted_in) == (100, 100, None)
        assert set(level.burn_rates.values()) == {0}


def test_the_budget_is_what_the_objective_allows_to_fail() -> None:
    # One in a thousand may fail: five of ten thousand are half of that.
    standing = stand("prod", PROD, replace(CALM, errors=5.0), burning())

    assert standing.availability.attained == pytest.approx(99.95)
    assert standing.availability.budget_left == pytest.approx(50)
    assert standing.latency.budget_left == 100


def test_a_burn_rate_is_how_many_times_too_fast_errors_come() -> None:
    hot = replace(CALM, requests=1000.0, errors=14.4, timed=1000.0, quick=500.0)
    standing = stand("prod", PROD, CALM, burning(w5m=hot, w1h=hot))

    assert standing.availability.burn_rates["5m"] == pytest.approx(14.4)
    assert standing.availability.burn_rates["1h"] == pytest.approx(14.4)
    assert standing.availability.burn_rates["6h"] == 0
    assert standing.latency.burn_rates["5m"] == pytest.approx(50)


def test_the_budget_is_exhausted_when_the_last_hour_goes_on() -> None:
    # At ten times the pace half a budget of thirty days lasts a day and a half.
    hour = replace(CALM, requests=1000.0, errors=10.0)
    standing = stand("prod", PROD, replace(CALM, errors=5.0), burning(w1h=hour))

    assert standing.availability.exhausted_in == pytest.approx(1.5 * 86_400)


def test_a_broken_promise_has_no_time_left_and_less_than_no_budget() -> None:
    standing = stand("prod", PROD, replace(CALM, errors=100.0), burning())

    assert standing.availability.budget_left == pytest.approx(-900)
    assert standing.availability.exhausted_in == 0
    assert standing.as_json()["availability"]["exhaustedInSeconds"] == 0


def test_latency_is_counted_at_the_nearest_bucket_and_says_so() -> None:
    odd = replace(PROD, latency_seconds=0.1234)
    body = stand("prod", odd, replace(CALM, quick=9800.0), burning()).as_json()

    assert body["latency"]["thresholdMs"] == pytest.approx(123.4)
    assert body["latency"]["countedAtMs"] == pytest.approx(123.4, rel=0.016)
    assert body["latency"]["attainedPercent"] == pytest.approx(98)
    assert body["latency"]["budgetLeftPercent"] == pytest.approx(-100)
    assert (body["window"], body["basis"], body["count"]) == ("30d", "requests", 10_000)


def test_refusals_are_neither_quick_nor_slow() -> None:
    # Half was turned away at the door; of what the model was given a tenth was slow.
    busy = replace(CALM, errors=5000.0, overloaded=5000.0, timed=5000.0, quick=4500.0)
    standing = stand("prod", PROD, busy, burning())

    assert standing.availability.attained == pytest.approx(50)
    assert standing.latency.attained == pytest.approx(90)
    turned_away = stand("prod", PROD, replace(busy, timed=0.0, quick=0.0), burning())
    assert turned_away.latency.attained is None


@pytest.mark.parametrize(
    ("watched", "percent"), [(None, 0), (0.0, 0), (1800.0, 50), (3600.0, 100), (3700.0, 100)]
)
def test_how_much_of_the_window_was_watched_is_told(watched: float | None, percent: float) -> None:
    standing = stand("prod", PROD, replace(CALM, watched=watched), burning())

    assert standing.as_json()["watchedPercent"] == percent


def test_a_budget_that_hardly_burns_lasts_for_a_finite_time() -> None:
    hour = replace(CALM, requests=1e12, errors=1e-6)
    standing = stand("prod", PROD, CALM, burning(w1h=hour))

    assert standing.availability.exhausted_in == FAR_SECONDS


def test_what_nobody_used_is_judged_by_probes_and_has_no_latency() -> None:
    idle = Reading(at=NOW, seconds=60, probes_passed=99.0, probes_failed=1.0, up=1.0, scrapes=9)
    body = stand("dev", Objective(), idle, dict.fromkeys(BURN_SECONDS, idle)).as_json()

    assert (body["basis"], body["count"]) == ("probes", 100)
    assert body["availability"]["attainedPercent"] == 99
    assert body["availability"]["burnRates"]["1h"] == pytest.approx(1)
    assert "attainedPercent" not in body["latency"]


@given(READING, READING, st.floats(50, 99.999), st.floats(0.001, 60))
def test_every_figure_is_finite(
    whole: Reading, part: Reading, percent: float, threshold: float
) -> None:
    promise = Objective(availability=percent, latency_share=percent, latency_seconds=threshold)
    standing = stand("prod", promise, whole, dict.fromkeys(BURN_SECONDS, part))

    for level in (standing.availability, standing.latency):
        figures = [level.budget_left, *level.burn_rates.values()]
        figures += [one for one in (level.attained, level.exhausted_in) if one is not None]
        assert all(math.isfinite(figure) for figure in figures)
        assert level.budget_left <= 100
        assert level.attained is None or 0 <= level.attained <= 100


def test_a_promise_is_exposed_with_the_bucket_that_measures_it() -> None:
    text = exposition(Objective(availability=99.9, latency_seconds=0.25, latency_share=95.0))
    samples = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]

    assert samples == [
        (names.AVAILABILITY_OBJECTIVE, {}, 0.999),
        (names.LATENCY_OBJECTIVE, {"le": "0.25"}, 0.95),
        (names.OBJECTIVE_WINDOW, {}, 2_592_000),
    ]
    assert 0.25 in names.LATENCY_BOUNDS
