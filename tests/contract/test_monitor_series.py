"""Series of runs, with a clock and a Prometheus that do as they are told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from metrics.client import MetricsUnavailableError
from tests.support.driven_monitor import BEGIN, World
from tests.support.queriers import Answers

if TYPE_CHECKING:
    from collections.abc import Callable

    from metrics.reading import Reading


@pytest.mark.parametrize("make", [lambda: None, Answers], ids=["embedded", "prometheus"])
async def test_a_series_has_a_point_at_every_multiple_of_its_step(
    make: Callable[[], Answers | None],
) -> None:
    prometheus = make()
    world = World(prometheus)
    world.now = BEGIN + 7
    world.scrape()
    course = await world.monitor.course("run0", "prod", 120.0, 15.0)

    times = [reading.at for reading in course.readings]
    assert len(times) == 8
    assert {at % 15 for at in times} == {0}
    assert 0 <= world.now - times[-1] < 15
    assert course.seconds == 60
    assert course.source == ("embedded" if prometheus is None else "prometheus")


async def test_a_series_is_asked_once_until_its_next_point() -> None:
    prometheus = Answers()
    world = World(prometheus)
    world.now = BEGIN + 10
    charts = [world.monitor.course("run0", None, 600.0, 60.0) for _ in range(30)]
    await asyncio.gather(*charts)
    world.now += 9
    await world.monitor.course("run0", None, 600.0, 60.0)
    assert len(prometheus.asked) == 1
    world.now += 60
    await world.monitor.course("run0", None, 600.0, 60.0)
    assert len(prometheus.asked) == 2


async def test_moments_of_a_series_that_prometheus_does_not_know_are_told_by_ourselves() -> None:
    prometheus = Answers(requests=120.0)
    prometheus.watches_since = BEGIN - 35
    world = World(prometheus)
    world.scrape()
    course = await world.monitor.course("run0", None, 60.0, 10.0)

    assert course.source == "prometheus"
    requests = [reading.requests for reading in course.readings]
    assert requests[:2] == pytest.approx([300, 300], rel=0.05)
    assert requests[-3:] == [120] * 3


async def test_the_source_of_a_series_is_who_told_most_of_it() -> None:
    prometheus = Answers()
    world = World(prometheus)
    world.scrape()
    sources = []
    for seconds in (30, 90):
        prometheus.watches_since = world.now - seconds
        course = await world.monitor.course("run0", None, 100 + seconds / 10, 5)
        sources.append(course.source)

    assert sources == ["embedded", "prometheus"]


async def test_a_series_of_a_dead_prometheus_comes_from_the_embedded_monitor() -> None:
    prometheus = Answers()
    prometheus.is_down = True
    world = World(prometheus)
    world.scrape()
    course = await world.monitor.course("run0", None, 60.0, 10.0)

    assert course.source == "embedded"
    assert course.readings[-1].requests == pytest.approx(300, rel=0.05)


async def test_series_that_are_too_much_for_prometheus_say_nothing_of_its_rates() -> None:
    class TooMuch(Answers):
        async def series(self, *_question: object) -> list[Reading]:
            raise MetricsUnavailableError("422 execution: too many samples")

    world = World(TooMuch())
    world.scrape()
    for window in range(600, 606):
        course = await world.monitor.course("run0", None, float(window), 60.0)
        assert course.source == "embedded"

    assert (await world.shown()).source == "prometheus"


async def test_a_chart_of_a_moment_without_prometheus_is_drawn_anew_before_its_next_point() -> None:
    prometheus = Answers(requests=120.0)
    prometheus.is_down = True
    world = World(prometheus)
    world.now = BEGIN + 10

    async def source() -> str:
        return (await world.monitor.course("run0", None, 30 * 86400.0, 43200.0)).source

    assert await source() == "embedded"
    prometheus.is_down = False
    asked = len(prometheus.asked)
    assert await source() == "embedded"
    assert len(prometheus.asked) == asked
    world.now += 60
    assert await source() == "prometheus"
