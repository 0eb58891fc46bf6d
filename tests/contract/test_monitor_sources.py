"""Summaries with a Prometheus that dies, comes back, hangs, or is slow with long windows."""

from __future__ import annotations

import asyncio

import pytest

from metrics.reading import RED, SLO, Name
from metrics.steady import SteadyClock
from server.states import Wanted
from tests.support.driven_monitor import BEGIN, INTERVAL, World
from tests.support.queriers import Answers


async def test_long_windows_are_asked_less_often_than_short_ones() -> None:
    prometheus = Answers()
    world = World(prometheus)
    for _ in range(60):
        await world.shown()
        world.now += INTERVAL

    seconds = [question.seconds for _, _, asked in prometheus.asked for question in asked]
    assert seconds.count(60) == 60
    assert seconds.count(300) == 60
    assert seconds.count(21_600) == 20
    # Ten days and three days: once a minute is often enough.
    assert seconds.count(864_000) <= 3
    assert seconds.count(259_200) == 2


async def test_the_last_good_answer_of_a_dead_prometheus_is_shown_for_thirty_seconds() -> None:
    prometheus = Answers()
    world = World(prometheus)
    good = await world.shown()
    prometheus.is_down = True
    world.scrape()
    seen = []
    for second in range(1, 45):
        world.now = BEGIN + second
        found = await world.shown()
        seen.append((second, found.source, found.at, found.summary.data_status))

    for second, source, at, status in seen:
        if second < 30:
            assert (source, at) == ("prometheus", BEGIN)
            assert status == ("stale" if second >= 16 else "ok")
        else:
            assert source == "embedded"
            assert at > BEGIN
    assert good.at == BEGIN
    # After the third failure nobody waits for it any more.
    assert len(prometheus.rates) == 1 + 3
    assert len(prometheus.long) == 1


async def test_nothing_that_a_dead_prometheus_said_is_shown_after_thirty_seconds() -> None:
    prometheus = Answers()
    world = World(prometheus)
    await world.shown()
    # Long windows are kept for a minute.
    assert {asked.source for asked in (await world.shown()).asked.values()} == {"prometheus"}
    prometheus.is_down = True
    world.scrape()
    for second in range(1, 32):
        world.now = BEGIN + second
        shown = await world.shown()

    assert {asked.source for asked in shown.asked.values()} == {"embedded"}


async def test_waiting_for_a_prometheus_that_hangs_does_not_prolong_its_last_answer() -> None:
    prometheus = Answers()
    world = World(prometheus)
    await world.shown()
    world.now = BEGIN + 29
    world.scrape()
    prometheus.held = asyncio.Event()
    prometheus.is_down = True
    page = asyncio.create_task(world.shown())
    await world.settled()
    world.now = BEGIN + 31
    prometheus.held.set()

    assert (await page).source == "embedded"


async def test_the_last_good_answer_is_no_longer_kept_than_it_may_be_shown() -> None:
    prometheus = Answers()
    world = World(prometheus)
    await world.shown()
    world.scrape()
    prometheus.is_down = True
    world.now = BEGIN + 29.5
    assert (await world.shown()).source == "prometheus"
    world.now = BEGIN + 30
    assert (await world.shown()).source == "embedded"


async def test_a_prometheus_that_scrapes_no_more_is_not_believed_though_it_answers() -> None:
    prometheus = Answers()
    world = World(prometheus)
    world.scrape()
    prometheus.scraped_ago = 16
    assert (await world.shown()).source == "embedded"
    # Nobody scrapes what is stopped, and then there is nothing newer to show.
    world.now += 20
    world.wanted = Wanted.STOPPED
    assert (await world.shown()).source == "prometheus"


async def test_long_windows_that_take_time_do_not_hold_up_the_rate() -> None:
    prometheus = Answers()
    prometheus.held_long = asyncio.Event()
    world = World(prometheus, patience=0)
    world.scrape()
    shown = await world.shown()

    assert (shown.source, shown.asked[Name(RED)].source) == ("prometheus", "prometheus")
    assert shown.asked[Name("6h", "prod")].source == "prometheus"
    assert shown.asked[Name(SLO)].source == shown.asked[Name("3d", "prod")].source == "embedded"
    prometheus.held_long.set()
    await world.settled()
    # They are told by the service for the rest of a minute.
    world.now += 60
    shown = await world.shown()
    await world.settled()
    assert {asked.source for asked in shown.asked.values()} == {"prometheus"}


async def test_long_windows_that_cannot_be_told_are_no_failure_of_prometheus() -> None:
    prometheus = Answers()
    world = World(prometheus)
    world.scrape()
    await world.shown()
    prometheus.long_is_down = True
    for second in range(2, 302, 2):
        world.now = BEGIN + second
        shown = await world.shown()
        await world.settled()
        assert shown.source == "prometheus"
        # The last answer is shown a while longer.
        told = "prometheus" if second < 90 else "embedded"
        assert {shown.asked[Name(SLO)].source, shown.asked[Name("3d", "prod")].source} == {told}

    assert world.monitor.prometheus_is_up is True
    assert len(prometheus.long) == 6


async def test_long_windows_that_waited_for_their_turn_are_those_of_now() -> None:
    prometheus = Answers()
    prometheus.held_long = asyncio.Event()
    world = World(prometheus, runs=3, patience=0)
    for run_id in sorted(world.deployed):
        world.scrape(run_id)
        await world.shown(run_id)
    await world.settled()
    assert len(prometheus.long) == 2
    # For longer than an old answer may be shown.
    world.now += 120
    prometheus.held_long.set()
    await world.settled()

    (run_id, at, _questions) = prometheus.long[2]
    assert at == world.now
    assert (await world.shown(run_id)).asked[Name(SLO)].source == "prometheus"


async def test_a_rate_over_days_is_asked_once_a_minute_and_says_when() -> None:
    prometheus = Answers()
    world = World(prometheus)
    world.scrape()
    for second in range(0, 120, 2):
        world.now = BEGIN + second
        shown = await world.shown(window=86_400.0)
        assert shown.at == shown.asked[Name(RED)].reading.at
        assert world.now - shown.at < 62

    assert len(prometheus.long) == 2


async def test_a_prometheus_that_comes_back_is_asked_again() -> None:
    prometheus = Answers()
    world = World(prometheus)
    await world.shown()
    prometheus.is_down = True
    for _ in range(30):
        world.now += INTERVAL
        world.scrape()
        await world.shown()
        await world.settled()
    assert (await world.shown()).source == "embedded"
    assert world.monitor.prometheus_is_up is False
    prometheus.is_down = False
    for _ in range(5):
        world.now += INTERVAL
        await world.shown()
        await world.settled()

    assert (await world.shown()).source == "prometheus"
    assert world.monitor.prometheus_is_up is True


async def test_an_answer_from_the_future_is_not_the_last_good_one() -> None:
    prometheus = Answers()
    world = World(prometheus)
    await world.shown()
    prometheus.is_down = True
    # The clock was an hour ahead.
    world.now -= 3600
    world.scrape()
    found = await world.shown()

    assert (found.source, found.at) == ("embedded", world.now)


async def test_a_prometheus_whose_clock_was_put_back_shows_no_hour_ago_for_now() -> None:
    prometheus = Answers()
    world = World(prometheus)
    assert (await world.shown()).source == "prometheus"
    # Its samples of the coming hour are those of the last one.
    ticks = [0.0]
    world.embedded.clock = SteadyClock(world.clock, lambda: ticks[0])
    world.now -= 3600
    found = await world.shown()
    assert (found.source, found.at) == ("embedded", world.now)
    ticks[0] += 3601
    world.now += 3601
    for _ in range(5):
        world.now += INTERVAL
        await world.shown()
        await world.settled()
    assert (await world.shown()).source == "prometheus"


# Where the service watched for half as long as Prometheus, it knows no better.
@pytest.mark.parametrize(("hours", "source"), [(6, "prometheus"), (12, "embedded")])
async def test_quantiles_that_leave_out_short_lives_are_told_by_who_knows_them(
    hours: int, source: str
) -> None:
    prometheus = Answers()
    prometheus.sketched = 0.8
    world = World(prometheus, days=0.5)
    world.scrape()
    world.watch(hours * 3600)
    shown = await world.shown()

    assert shown.asked[Name(SLO)].source == source
    assert shown.source == "prometheus"
