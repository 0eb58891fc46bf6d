"""A wall clock that is put forward and back, and what of the figures is to be seen of it."""

from __future__ import annotations

import logging

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.persistence import Recorder
from metrics.reading import Question, Reading, positive
from metrics.steady import SteadyClock
from metrics.targets import Target

START = 1_700_000_000.0
HOUR = 3600.0
YEAR = 365 * 86_400.0
REPLICA = Target(run_id="run", model="m", environment="dev", replica="0", version="1")


class Clocks:
    """A wall clock that can be put, and one that only goes on."""

    def __init__(self) -> None:
        self.wall = START
        self.elapsed = 1000.0
        self.sleeps = 0.0

    def go_on(self, seconds: float) -> None:
        self.wall += seconds
        self.elapsed += seconds

    def told(self) -> float:
        """The wall clock, after which the process may be put to sleep."""
        told = self.wall
        self.go_on(self.sleeps)
        self.sleeps = 0
        return told

    def steady(self) -> SteadyClock:
        return SteadyClock(self.told, lambda: self.elapsed)


class Watching:
    """A monitor that has scraped a replica with a request a second every two seconds."""

    def __init__(self) -> None:
        self.clocks = Clocks()
        self.monitor = EmbeddedMonitor(clock=self.clocks.steady())
        self.instruments = InferenceInstruments(None)

    def watch(self, seconds: float, pause: float = 2.0) -> None:
        for _ in range(round(seconds / pause)):
            self.clocks.go_on(pause)
            for _ in range(round(pause)):
                self.instruments.observe("2xx", 0.02)
            assert self.monitor.ingest(REPLICA, self.monitor.now(), self.instruments.text())

    def read(self, seconds: float = 60.0) -> Reading:
        question = Question(seconds=seconds, quantiles=(0.95,), health=True)
        return self.monitor.read("run", question, self.clocks.wall)


def test_a_clock_that_is_not_put_is_told_as_it_is() -> None:
    clocks = Clocks()
    clock = clocks.steady()
    for _ in range(100):
        clocks.go_on(2)
        clocks.wall += 0.001
        assert clock.now() == clocks.wall
    assert not clock.was_put_back


@pytest.mark.parametrize("step", [3 * HOUR, -HOUR, YEAR, -YEAR, 1.0, -1.0])
def test_steps_are_left_out_and_told_once(step: float, caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    clock = clocks.steady()
    clocks.go_on(10)
    clocks.wall += step
    with caplog.at_level(logging.WARNING):
        assert clock.now() == pytest.approx(START + 10)
        clocks.go_on(10)
        assert clock.now() == pytest.approx(START + 20)

    assert clock.skew == pytest.approx(-step)
    assert len(caplog.records) == 1


def test_a_process_that_is_put_to_sleep_between_two_looks_sees_no_step() -> None:
    clocks = Clocks()
    clock = clocks.steady()
    clocks.go_on(10)
    clocks.sleeps = 30.0

    assert clock.now() == pytest.approx(clocks.wall)
    assert clock.skew == 0


def test_times_that_come_again_are_known_for_as_long_as_they_do() -> None:
    clocks = Clocks()
    clock = clocks.steady()
    clocks.wall -= HOUR
    clock.now()
    clocks.go_on(HOUR - 1)
    assert clock.was_put_back
    clocks.go_on(2)
    assert not clock.was_put_back
    # One that was years ahead is not held against Prometheus for years.
    clocks.wall -= YEAR
    clock.now()
    clocks.go_on(86_401)
    assert not clock.was_put_back


def test_a_small_step_does_not_end_the_doubt_of_a_large_one() -> None:
    clocks = Clocks()
    clock = clocks.steady()
    clocks.wall -= HOUR
    clock.now()
    clocks.go_on(10)
    clocks.wall -= 1
    clock.now()
    clocks.go_on(HOUR - 20)
    assert clock.was_put_back
    # Put forward again, it shows new times at once.
    clocks.wall += 60
    clock.now()
    assert not clock.was_put_back


@pytest.mark.parametrize(
    "steps", [(3 * HOUR,), (-3 * HOUR,), (YEAR, -YEAR), (-YEAR, YEAR), (5.0, -5.0), (-90.0, 90.0)]
)
def test_figures_go_on_over_steps_as_if_there_had_been_none(steps: tuple[float, ...]) -> None:
    watching = Watching()
    watching.watch(2 * HOUR)
    for step in steps:
        watching.clocks.wall += step
        for seconds in (2.0, 8.0, 50.0, 600.0):
            watching.watch(seconds)
            for window in (60.0, 300.0, HOUR):
                assert watching.read(window).requests == pytest.approx(window, rel=0.03)
            last = watching.read().last_scrape_at
            assert last == pytest.approx(watching.clocks.wall, abs=0.01)

    assert watching.monitor.gone == set()
    assert watching.read(4 * HOUR).requests == pytest.approx(2 * HOUR + len(steps) * 660, rel=0.03)


@pytest.mark.parametrize("step", [YEAR, -YEAR])
def test_no_history_is_lost_to_a_clock_that_is_wrong_for_hours(step: float) -> None:
    watching = Watching()
    watching.watch(4 * HOUR, pause=20)
    ended = Target(run_id="run", model="m", environment="dev", replica="1", version="1")
    watching.monitor.ingest(ended, watching.monitor.now(), watching.instruments.text())
    watching.monitor.drop(ended)
    watching.clocks.wall += step
    watching.watch(4 * HOUR, pause=20)

    assert watching.monitor.gone == set()
    assert watching.read(9 * HOUR).requests == pytest.approx(8 * HOUR, rel=0.03)


def test_a_clock_that_is_wrong_at_the_start_deletes_nothing_within_an_hour() -> None:
    before, after = Watching(), Watching()
    before.watch(4 * HOUR, pause=20)
    _resume(before.monitor, after.monitor)
    late = Target(run_id="other", model="m", environment="dev", replica="0", version="1")
    for second in range(0, 3500, 20):
        after.monitor.ingest(late, START + YEAR + second, None)

    assert after.monitor.gone == set()


@pytest.mark.parametrize("ahead", [60.0, HOUR, YEAR])
def test_what_a_clock_that_was_ahead_has_written_is_counted_and_gone_on_from(ahead: float) -> None:
    before, after = Watching(), Watching()
    before.watch(3 * HOUR, pause=10)
    before.clocks.wall += ahead
    # It was started anew while its clock was ahead, and is once more now that it is right.
    ahead_of_us = Watching()
    ahead_of_us.clocks.wall = ahead_of_us.monitor.clock._wall() + 3 * HOUR + ahead
    ahead_of_us.monitor.clock = ahead_of_us.clocks.steady()
    ahead_of_us.instruments = before.instruments
    _resume(before.monitor, ahead_of_us.monitor)
    ahead_of_us.watch(HOUR, pause=10)
    after.clocks.go_on(4 * HOUR)
    after.monitor.clock = after.clocks.steady()
    after.instruments = before.instruments
    _resume(ahead_of_us.monitor, after.monitor)
    after.watch(600, pause=10)

    total = 4 * HOUR + 600
    assert after.read(300).requests == pytest.approx(300, rel=0.05)
    assert after.read(5 * HOUR).requests == pytest.approx(total, rel=0.05)
    assert positive(after.read(300).up) == 1


def _resume(one: EmbeddedMonitor, other: EmbeddedMonitor) -> None:
    recorder = Recorder(one)
    for changes in recorder.unsaved():
        for written in recorder.write(changes):
            assert Recorder(other).resume(written.head, written.blocks)
