from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.slo import NOT_DEPLOYED, UNAVAILABLE, Readings, summarise, window_seconds

NOW = 1_700_000_000.0
BUSY = Readings(
    at=NOW,
    rps=20.0,
    error_rps=1.0,
    p95_seconds=0.25,
    slo_total=1000.0,
    slo_errors=5.0,
    slo_p95_seconds=0.5,
    up=0.9,
    samples=30,
    last_scrape_at=NOW - 1,
)


def test_percent_are_of_a_hundred_and_durations_in_milliseconds() -> None:
    shown = summarise(BUSY)

    assert shown.as_json() == {
        "red": {"rps": 20.0, "errorsPercent": 5.0, "p95DurationMs": 250.0},
        "slo": {"availability": 99.5, "latencyP95Ms": 500.0},
        "dataStatus": "ok",
    }


def test_without_traffic_red_is_zeros_and_scrapes_say_the_availability() -> None:
    idle = Readings(
        at=NOW,
        rps=0.0,
        error_rps=0.0,
        p95_seconds=math.nan,
        slo_total=0.0,
        slo_errors=0.0,
        up=0.75,
        samples=4,
        last_scrape_at=NOW,
    )
    shown = summarise(idle)

    assert (shown.rps, shown.errors_percent, shown.p95_duration_ms) == (0, 0, 0)
    assert (shown.availability, shown.latency_p95_ms) == (75, 0)
    assert shown.data_status == "no_traffic"


def test_nothing_at_all_is_zeros_and_says_so() -> None:
    shown = summarise(Readings(at=NOW))

    assert shown == UNAVAILABLE
    assert set(map(str, shown.as_json()["red"].values())) == {"0.0"}
    assert NOT_DEPLOYED.data_status == "not_deployed"


@pytest.mark.parametrize(("age", "status"), [(0, "ok"), (15, "ok"), (16, "stale"), (999, "stale")])
def test_figures_are_stale_when_no_scrape_is_recent(age: float, status: str) -> None:
    old = Readings(at=NOW, rps=1.0, samples=1, last_scrape_at=NOW - age)

    assert summarise(old).data_status == status


def test_scrapes_without_a_recent_one_are_stale() -> None:
    assert summarise(Readings(at=NOW, up=1.0, samples=5)).data_status == "stale"


def test_a_stopped_deployment_shows_what_it_did_and_that_it_is_down() -> None:
    shown = summarise(BUSY, deployed=False)

    assert shown.availability == 99.5
    assert shown.data_status == "not_deployed"


def test_more_errors_than_requests_are_all_of_them() -> None:
    odd = Readings(at=NOW, rps=1.0, error_rps=1.02, slo_total=10, slo_errors=10.2, samples=1)

    assert summarise(odd).errors_percent == 100
    assert summarise(odd).availability == 0


FIGURE = st.none() | st.floats(allow_nan=True, allow_infinity=True)


@given(st.tuples(*([FIGURE] * 9)))
def test_every_figure_is_finite_and_every_share_a_percentage(
    values: tuple[float | None, ...],
) -> None:
    fields = [
        "rps",
        "error_rps",
        "p95_seconds",
        "slo_total",
        "slo_errors",
        "slo_p95_seconds",
        "up",
        "samples",
        "last_scrape_at",
    ]
    body = summarise(Readings(at=NOW, **dict(zip(fields, values, strict=True)))).as_json()

    figures = [*body["red"].values(), *body["slo"].values()]
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
    assert body["red"]["errorsPercent"] <= 100
    assert body["slo"]["availability"] <= 100
    assert body["dataStatus"] in {"ok", "no_traffic", "stale", "unavailable"}


def test_service_levels_are_measured_since_the_first_deployment_within_bounds() -> None:
    assert window_seconds(None, NOW) == 30 * 86_400
    assert window_seconds(NOW - 3600, NOW) == 3600
    assert window_seconds(NOW - 1, NOW) == 60
    assert window_seconds(NOW - 1e9, NOW) == 30 * 86_400
