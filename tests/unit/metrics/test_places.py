"""More targets than there is room for."""

from __future__ import annotations

import logging
from random import Random

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.persistence import Recorder
from metrics.reading import Question, Reading
from metrics.targets import Target

START = 1_700_000_000.0


def target(number: int) -> Target:
    return Target(run_id=f"run{number}", model="m", environment="dev", replica="0", version="1")


def own(number: int) -> Target:
    return Target(
        run_id=f"run{number}", model="m", environment="dev", replica="gateway", version="1"
    )


class Crowded:
    """A monitor of some replicas, each of which answers five requests a second."""

    def __init__(self, number: int, **options: int) -> None:
        self.monitor = EmbeddedMonitor(**options)
        self.now = START
        self.replicas = {target(place): InferenceInstruments(None) for place in range(number)}

    def scrape(self, seconds: float, pause: float = 2.0) -> None:
        for _ in range(round(seconds / pause)):
            self.now += pause
            for one, instruments in self.replicas.items():
                for _ in range(round(5 * pause)):
                    instruments.observe("2xx", 0.02)
                assert self.monitor.ingest(one, self.now, instruments.text())

    def read(self, number: int, seconds: float = 60) -> Reading:
        question = Question(seconds=seconds, quantiles=(0.95,), health=True)
        return self.monitor.read(f"run{number}", question, self.now)


def test_beyond_the_limit_rates_stay_right_and_nobody_loses_a_history(
    caplog: pytest.LogCaptureFixture,
) -> None:
    crowded = Crowded(5, max_targets=3)
    with caplog.at_level(logging.WARNING):
        crowded.scrape(1200)

    assert crowded.monitor.crowd == (3, 2, 0)
    assert crowded.monitor.gone == set()
    for number in range(5):
        assert crowded.read(number).requests == pytest.approx(300, rel=0.02)
        assert crowded.read(number).durations[0] == pytest.approx(0.02, rel=0.03)
        # A brief history knows a minute and a half.
        known = 1200 if number < 3 else 90
        assert crowded.read(number, 1000).requests == pytest.approx(5 * min(known, 1000), rel=0.05)
    assert len(caplog.records) == 1


def test_beyond_twice_the_limit_there_is_no_history_and_it_is_counted() -> None:
    crowded = Crowded(5, max_targets=2)
    crowded.scrape(300)

    assert crowded.monitor.crowd == (2, 2, 1)
    assert crowded.read(4).is_empty
    assert crowded.read(3).requests == pytest.approx(300, rel=0.02)
    del crowded.replicas[target(4)]
    crowded.monitor.drop(target(4))
    assert crowded.monitor.crowd == (2, 2, 0)


def test_who_ends_makes_room_for_those_that_had_a_brief_history() -> None:
    crowded = Crowded(6, max_targets=2)
    crowded.scrape(300)
    for number in (0, 1):
        del crowded.replicas[target(number)]
        crowded.monitor.drop(target(number))
    crowded.scrape(1800)

    assert crowded.monitor.crowd == (2, 2, 0)
    assert crowded.read(2, 1700).requests == pytest.approx(5 * 1700, rel=0.05)
    assert crowded.read(5).requests == pytest.approx(300, rel=0.02)
    assert crowded.monitor.gone == {target(0).id, target(1).id}


def test_what_a_brief_history_does_not_know_counts_as_not_watched() -> None:
    monitor, text = EmbeddedMonitor(max_targets=2), InferenceInstruments(None).text()
    for second in range(0, 1200, 2):
        monitor.ingest(own(0), START + second, text)
        monitor.ingest(own(1), START + second, text)
        monitor.ingest(target(1), START + second, text)
    question = Question(seconds=1000, watched=True)

    assert monitor.crowd == (2, 1, 0)
    assert monitor.watched_seconds("run0", question, START + 1198) == 1000
    assert monitor.watched_seconds("run1", question, START + 1198) == 90


def test_a_brief_history_is_not_kept_over_a_restart() -> None:
    crowded = Crowded(3, max_targets=2)
    crowded.scrape(300)
    recorder = Recorder(crowded.monitor)
    written = [one for changes in recorder.unsaved() for one in recorder.write(changes)]
    assert {one.target for one in written} == {target(0).id, target(1).id}
    # A service with a lower limit takes what there is room for, and has the rest deleted.
    smaller = EmbeddedMonitor(max_targets=1)
    for one in written:
        assert Recorder(smaller).resume(one.head, one.blocks)
    assert smaller.crowd == (1, 0, 0)
    assert len(smaller.gone) == 1


def test_where_the_newest_minutes_take_all_the_memory_they_are_shortened_and_not_the_month() -> (
    None
):
    random = Random(3)
    monitor = EmbeddedMonitor(max_bytes=1_000_000)
    instruments = [InferenceInstruments(None) for _ in range(5)]
    for second in range(0, 4800, 4):
        for number, one in enumerate(instruments):
            for _ in range(3):
                one.observe("2xx", random.lognormvariate(-3, 1))
            monitor.ingest(target(number), START + second, one.text())
    question = Question(seconds=4200, quantiles=(0.95,))

    assert monitor.size < 1_300_000
    for number in range(5):
        found = monitor.read(f"run{number}", question, START + 4800)
        assert found.requests == pytest.approx(4200 / 4 * 3, rel=0.03)
