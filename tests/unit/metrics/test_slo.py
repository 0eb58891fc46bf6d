from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given

from metrics.reading import Reading
from metrics.slo import (
    DATA_STATUSES,
    NOT_DEPLOYED,
    UNAVAILABLE,
    Summary,
    availability_of,
    faults_of,
    summarise,
    window_seconds,
)
from metrics.targets import Reach, Target
from tests.support.readings import READING

NOW = 1_700_000_000.0
RED = Reading(
    at=NOW,
    seconds=60,
    requests=1200.0,
    client_errors=120.0,
    errors=60.0,
    overloaded=12.0,
    durations=(0.25,),
    up=0.9,
    scrapes=30,
    last_scrape_at=NOW - 1,
)
SLO = replace(RED, seconds=3600, requests=1000.0, errors=5.0, durations=(0.5,), scrapes=1800)
NOTHING = Reading(at=NOW, seconds=60)


def test_percent_are_of_a_hundred_and_durations_in_milliseconds() -> None:
    assert summarise(RED, SLO).as_json() == {
        "red": {"rps": 20.0, "errorsPercent": 5.0, "p95DurationMs": 250.0},
        "slo": {"availability": 99.5, "latencyP95Ms": 500.0},
        "dataStatus": "ok",
        "errorsByFault": {"clientPercent": 10.0, "modelPercent": 4.0, "overloadPercent": 1.0},
    }


def test_the_models_errors_and_overload_are_all_errors_together() -> None:
    faults = faults_of(RED)
    found = summarise(RED, SLO)

    assert faults.model_percent + faults.overload_percent == pytest.approx(found.errors_percent)
    more = faults_of(replace(RED, overloaded=61.0))
    assert (more.model_percent, more.overload_percent) == (0, 5)


def test_without_traffic_red_is_zeros_and_probes_say_the_availability() -> None:
    idle = replace(RED, requests=0.0, errors=0.0, durations=(math.nan,), up=0.75)
    probed = replace(idle, probes_passed=19.0, probes_failed=1.0)
    found = summarise(idle, probed)

    assert (found.rps, found.errors_percent, found.p95_duration_ms) == (0, 0, 0)
    assert (found.availability, found.latency_p95_ms, found.basis) == (95, 0, "probes")
    assert found.data_status == "no_traffic"


def test_without_traffic_and_probes_scrapes_say_the_availability() -> None:
    idle = replace(RED, requests=0.0, errors=0.0, up=0.75, probes_passed=0.0, probes_failed=0.0)

    assert (summarise(idle, idle).availability, summarise(idle, idle).basis) == (75, "scrapes")
    assert availability_of(SLO).basis == "requests"


def test_nothing_at_all_is_zeros_and_says_so() -> None:
    found = summarise(NOTHING, NOTHING)

    assert found == UNAVAILABLE
    assert set(map(str, found.as_json()["red"].values())) == {"0.0"}
    assert NOT_DEPLOYED.data_status == "not_deployed"


@pytest.mark.parametrize(("age", "status"), [(0, "ok"), (15, "ok"), (16, "stale"), (999, "stale")])
def test_figures_are_stale_when_no_scrape_is_recent(age: float, status: str) -> None:
    assert summarise(replace(RED, last_scrape_at=NOW - age), SLO).data_status == status


@pytest.mark.parametrize(
    ("requests", "read", "unread", "status"),
    [
        (0.0, 2, 0, "no_traffic"),
        (0.0, 1, 1, "stale"),
        (0.0, 0, 1, "stale"),
        # The others are asked, and this one's part is missing: it is named beside.
        (9.0, 1, 1, "ok"),
        # What they were asked was before they fell silent.
        (9.0, 0, 2, "stale"),
    ],
)
def test_a_replica_that_cannot_be_read_is_not_called_idle(
    requests: float, read: int, unread: int, status: str
) -> None:
    silent = Target(environment="prod", model="m", replica="0", run_id="r", version="1")
    reach = Reach(read, (silent,) * unread)

    red = replace(RED, requests=requests)
    assert summarise(red, SLO, reach=reach).data_status == status
    assert summarise(red, SLO, reach=reach, deployed=False).data_status == "not_deployed"


def test_scrapes_without_a_recent_one_are_stale() -> None:
    old = Reading(at=NOW, seconds=60, up=1.0, scrapes=5)

    assert summarise(NOTHING, old).data_status == "stale"


def test_a_stopped_deployment_shows_what_it_did_and_that_it_is_down() -> None:
    found = summarise(NOTHING, SLO, deployed=False)

    assert found.availability == 99.5
    assert found.data_status == "not_deployed"


def test_more_errors_than_requests_are_all_of_them() -> None:
    odd = replace(RED, requests=10.0, errors=10.2)

    assert summarise(odd, odd).errors_percent == 100
    assert summarise(odd, odd).availability == 0


@given(READING, READING)
def test_every_figure_is_finite_and_every_share_a_percentage(red: Reading, slo: Reading) -> None:
    found: Summary = summarise(red, slo)
    body = found.as_json()
    figures = [*body["red"].values(), *body["slo"].values(), *body["errorsByFault"].values()]

    assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
    assert body["red"]["errorsPercent"] <= 100
    assert body["slo"]["availability"] <= 100
    assert all(share <= 100 for share in body["errorsByFault"].values())
    assert body["dataStatus"] in set(DATA_STATUSES) - {"not_deployed"}


def test_service_levels_are_measured_since_the_first_deployment_within_bounds() -> None:
    assert window_seconds(None, NOW) == 30 * 86_400
    assert window_seconds(NOW - 3600, NOW) == 3600
    assert window_seconds(NOW - 1, NOW) == 60
    assert window_seconds(NOW - 1e9, NOW) == 30 * 86_400
    assert window_seconds(NOW - 3600, NOW, 300) == 300
