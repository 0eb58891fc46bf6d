"""Summaries of runs, with a clock and a Prometheus that do as they are told."""

from __future__ import annotations

import asyncio

import pytest

from metrics.objectives import Objective
from metrics.reading import RED, SLO, Name
from server.pipeline import monitor as monitors
from server.states import Wanted
from tests.support.driven_monitor import BEGIN, INTERVAL, World
from tests.support.queriers import Answers


async def test_a_thousand_pages_on_fifty_runs_cost_one_query_per_run_and_interval() -> None:
    prometheus = Answers()
    world = World(prometheus, runs=50)
    intervals = 10
    for _ in range(intervals):
        for _ in range(3):
            pages = [world.shown(f"run{number % 50}") for number in range(1000)]
            assert {page.source for page in await asyncio.gather(*pages)} == {"prometheus"}
            world.now += INTERVAL / 4
        world.now += INTERVAL / 4

    asked = [(run_id, (at - BEGIN) // INTERVAL) for run_id, at, _ in prometheus.rates]
    assert len(asked) == len(set(asked)) == 50 * intervals
    # Long windows are asked apart, and once a minute.
    assert len(prometheus.long) == len({run_id for run_id, _, _ in prometheus.long}) == 50


async def test_pages_that_come_together_wait_for_one_answer() -> None:
    prometheus = Answers()
    prometheus.held = asyncio.Event()
    world = World(prometheus)
    pages = [asyncio.create_task(world.shown()) for _ in range(20)]
    await world.settled()
    pages[0].cancel()
    await world.settled()
    prometheus.held.set()
    found = await asyncio.gather(*pages[1:])

    assert pages[0].cancelled()
    assert len(prometheus.rates) == len(prometheus.long) == 1
    assert all(one is found[0] for one in found)


@pytest.mark.parametrize(
    ("scrapes", "source"), [(1, "prometheus"), (3, "embedded"), (9, "embedded"), (10, "prometheus")]
)
async def test_a_window_that_prometheus_watched_in_part_is_not_shown(
    scrapes: float, source: str
) -> None:
    prometheus = Answers(scrapes=scrapes)
    world = World(prometheus)
    world.scrape()

    # Six scrapes in the second half of the window, after an outage or a late discovery.
    assert (await world.shown()).source == source
    world.wanted = Wanted.STOPPED
    world.now += INTERVAL
    assert (await world.shown()).source == "prometheus"


async def test_each_window_is_told_by_whoever_watched_the_whole_of_it() -> None:
    prometheus = Answers()
    prometheus.watches_since = BEGIN - 3600
    world = World(prometheus, days=0.25)
    world.watch(6 * 3600)
    shown = await world.shown()

    assert {name.part: asked.source for name, asked in shown.asked.items() if name.environment} == {
        "slo": "embedded",
        "5m": "prometheus",
        "1h": "prometheus",
        "6h": "embedded",
        "3d": "embedded",
    }
    assert shown.asked[Name(SLO)].source == "embedded"
    # The rate is Prometheus', and so is the header.
    assert shown.source == "prometheus"
    assert shown.standings[0].watched == pytest.approx(100)


async def test_a_rate_over_hours_is_told_by_whoever_watched_them_too() -> None:
    prometheus = Answers()
    prometheus.watches_since = BEGIN - 3600
    world = World(prometheus, days=0.25)
    world.watch(6 * 3600)

    assert (await world.shown(window=1800.0)).source == "prometheus"
    assert (await world.shown(window=7200.0)).source == "embedded"


async def test_what_nobody_watched_wholly_is_told_by_prometheus_and_said_to_be_so() -> None:
    prometheus = Answers()
    prometheus.watches_since = BEGIN - 3 * 3600
    world = World(prometheus, days=0.25)
    # The service lost its own history an hour ago.
    world.watch(3600)
    shown = await world.shown()

    assert {asked.source for asked in shown.asked.values()} == {"prometheus"}
    assert shown.standings[0].watched == pytest.approx(50)
    prometheus.is_down = True
    world.monitor.reconsider("run0")
    world.now += 10
    shown = await world.shown()
    assert {asked.source for asked in shown.asked.values()} == {"embedded"}
    assert shown.standings[0].watched == pytest.approx(100 / 6, abs=0.1)


async def test_a_prometheus_whose_scrapes_fail_says_nothing_of_the_replicas() -> None:
    prometheus = Answers(requests=None)
    world = World(prometheus)
    world.scrape()
    world.watch(120)
    shown = await world.shown()

    # All of its scrapes failed: to it every replica is down.
    assert {asked.source for asked in shown.asked.values()} == {"embedded"}
    assert shown.standings[0].availability.burn_rates["5m"] == 0


async def test_what_prometheus_does_not_know_yet_is_told_by_the_embedded_monitor() -> None:
    prometheus = Answers(requests=None, scrapes=1)
    world = World(prometheus)
    world.scrape()
    shown = await world.shown()

    assert shown.source == "embedded"
    assert shown.summary.rps == pytest.approx(5)
    world.wanted = Wanted.STOPPED
    world.now += INTERVAL
    assert (await world.shown()).source == "prometheus"


async def test_the_embedded_monitor_evaluates_as_the_prometheus_that_there_is() -> None:
    prometheus = Answers()
    prometheus.version = "3.1.0"
    world = World(prometheus)
    await world.shown()

    assert world.embedded.prom3 is True


async def test_a_prometheus_that_does_not_say_its_version_is_asked_all_the_same() -> None:
    class Mute(Answers):
        async def build_info(self):
            raise monitors.MetricsUnavailableError("404")

    world = World(Mute())
    assert (await world.shown()).source == "prometheus"


async def test_a_version_that_could_not_be_learnt_at_first_is_asked_for_again() -> None:
    class MuteAtFirst(Answers):
        times = 0

        async def build_info(self):
            self.times += 1
            if self.times == 1:
                raise monitors.MetricsUnavailableError("no answer within 2 s")
            return await super().build_info()

    prometheus = MuteAtFirst()
    prometheus.version = "3.1.0"
    world = World(prometheus)
    await world.shown()
    assert world.embedded.prom3 is False
    for _ in range(40):
        world.now += INTERVAL
        await world.shown()

    assert world.embedded.prom3 is True
    assert prometheus.times == 2


@pytest.mark.parametrize("prometheus", [None, Answers(requests=0.0)], ids=["alone", "prometheus"])
async def test_a_replica_that_cannot_be_read_is_named_and_not_called_idle(
    prometheus: Answers | None,
) -> None:
    world = World(prometheus)
    world.scrape(requests_per_second=0)
    shown = await world.shown()
    assert (shown.summary.data_status, shown.unread) == ("no_traffic", ())
    for _ in range(10):
        world.now += INTERVAL
        world.embedded.ingest(world.target, world.now, None)
    shown = await world.shown()

    assert (shown.summary.data_status, shown.unread) == ("stale", (world.target,))
    # It was taken down: nobody expects it to answer.
    world.embedded.drop(world.target)
    world.now += INTERVAL
    assert (await world.shown()).unread == ()


async def test_a_run_that_was_never_deployed_costs_no_question() -> None:
    prometheus = Answers()
    world = World(prometheus)
    shown = await world.shown("other")

    assert shown.summary.data_status == "not_deployed"
    assert (shown.standings, shown.asked, prometheus.asked) == ((), {}, [])


async def test_a_window_narrows_both_the_rate_and_the_service_levels() -> None:
    world = World(None)
    world.scrape()
    shown = await world.shown(window=90.0)

    assert shown.asked[Name(RED)].question.seconds == 90
    assert shown.asked[Name(SLO)].question.seconds == 90
    assert shown.asked[Name("1h", "prod")].question.seconds == 3600
    assert shown.summary.rps == pytest.approx(5)


async def test_another_objective_holds_at_once() -> None:
    world = World(None)
    world.scrape()
    assert (await world.shown()).standings[0].objective.availability == 99.0
    world.objective = Objective(availability=99.9, latency_seconds=0.1)
    world.monitor.reconsider("run0")
    [standing] = (await world.shown()).standings

    assert standing.objective.availability == 99.9
    assert standing.latency.attained == 0


async def test_pages_and_series_are_remembered_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitors, "_PAGES", 3)
    monkeypatch.setattr(monitors, "_COURSES", 3)
    world = World(None)
    for window in range(60, 70):
        await world.shown(window=float(window))
        await world.monitor.course("run0", None, 600.0 + window, 60.0)

    assert len(world.monitor._pages) == len(world.monitor._courses) == 3


async def test_a_failure_of_our_own_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(None)
    with monkeypatch.context() as broken:
        broken.setattr(world.embedded, "read", _raise)
        with pytest.raises(ZeroDivisionError):
            await world.shown()
        with pytest.raises(ZeroDivisionError):
            await world.monitor.course("run0", None, 600.0, 60.0)
    await world.settled()

    assert (await world.shown()).summary.data_status == "unavailable"
    assert len((await world.monitor.course("run0", None, 600.0, 60.0)).readings) == 10


def _raise(*_arguments: object) -> None:
    raise ZeroDivisionError
