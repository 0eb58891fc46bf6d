from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.reading import Question
from metrics.semantics import Window
from metrics.targets import Target
from metrics.tiers import Plan
from metrics.watches import Watch, covered

START = 1_700_000_000.0
WINDOW = Window(start=100_000, end=200_000)


def watched(*times: int, gap: int = 15_000) -> Watch:
    watch = Watch(gap)
    for at in times:
        watch.look(at)
    return watch


def test_looks_that_follow_each_other_closely_are_one_stretch() -> None:
    watch = watched(0, 10_000, 25_000, 40_001, 50_000)

    assert watch.stretches == ((0, 25_000), (40_001, 50_000))


def test_what_is_forgotten_counts_as_not_looked_at() -> None:
    watch = watched(0, 10_000, 90_000, 100_000)
    watch.forget(95_000)
    assert watch.stretches == ((95_000, 100_000),)
    watch.look(105_000)
    assert watch.stretches == ((95_000, 105_000),)
    watch.forget(200_000)
    assert watch.stretches == ()


def test_stretches_are_remembered_up_to_a_limit_the_newest_ones() -> None:
    watch = watched(*range(0, 500_000, 1000), gap=500)

    assert len(watch.stretches) == 200
    assert watch.stretches[-1] == (499_000, 499_000)


def test_what_two_targets_saw_at_the_same_time_counts_once() -> None:
    assert covered([(150_000, 190_000), (90_000, 120_000), (110_000, 130_000)], WINDOW) == 70_000
    assert covered([(0, 99_000), (201_000, 300_000)], WINDOW) == 0
    assert covered([(0, 300_000)] * 3, WINDOW) == 100_000
    assert covered([], WINDOW) == 0


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=40, unique=True))
def test_a_window_is_covered_by_the_pauses_that_are_no_gaps(times: list[int]) -> None:
    times.sort()
    covers = 0
    for one, other in pairwise(times):
        if other - one <= 15_000:
            covers += max(min(other, WINDOW.end) - max(one, WINDOW.start), 0)

    assert covered(watched(*times).stretches, WINDOW) == covers


# ── the embedded monitor


def target(
    replica: str = "0", *, run: str = "run", environment: str = "dev", version: str = "1"
) -> Target:
    return Target(
        run_id=run, model="model", environment=environment, replica=replica, version=version
    )


def look(monitor: EmbeddedMonitor, of: Target, *seconds: int) -> None:
    for second in seconds:
        monitor.ingest(of, START + second, None)


def seen(monitor: EmbeddedMonitor, at: float, seconds: float, environment: str | None) -> float:
    question = Question(seconds=seconds, environment=environment, watched=True)
    found = monitor.read("run", question, START + at).watched
    assert found is not None
    return found


def test_how_long_a_deployment_was_watched_is_known_of_every_window() -> None:
    monitor = EmbeddedMonitor(gap_seconds=60)
    look(monitor, target("gateway"), *range(0, 601, 30), *range(1200, 3601, 30))
    look(monitor, target("gateway", version="2"), *range(1200, 3601, 30))
    look(monitor, target("gateway", environment="prod"), *range(3000, 3601, 30))
    # Replicas may come and go.
    look(monitor, target("0"), *range(0, 3601, 30))

    assert seen(monitor, 3600, 3600, "dev") == 600 + 2400
    assert seen(monitor, 3600, 300, "dev") == 300
    assert seen(monitor, 3600, 3600, "prod") == 600
    assert seen(monitor, 3600, 3600, None) == 600 + 2400 + 600
    assert seen(monitor, 1000, 300, "dev") == 0
    assert monitor.read("run", Question(seconds=60), START + 3600).watched is None


def test_a_deployment_counts_as_not_watched_where_its_history_was_given_up() -> None:
    monitor = EmbeddedMonitor(gap_seconds=60, max_targets=3)
    look(monitor, target("gateway"), *range(0, 3601, 60))
    look(monitor, target("0"), *range(0, 1201, 60))
    monitor.drop(target("0"))
    look(monitor, target("1"), *range(1200, 3601, 60))
    assert seen(monitor, 3600, 3600, "dev") == 3600
    look(monitor, target("gateway", run="other"), 3600)
    assert seen(monitor, 3600, 3600, "dev") == 2400


def test_a_history_that_lost_its_older_half_counts_as_watched_since_then_only() -> None:
    random = Random(4)
    minutes = Plan(spacing=60_000, keep=86_400_000, length=10)
    monitor = EmbeddedMonitor(fine_seconds=60, gap_seconds=60, plans=(minutes,), max_bytes=60_000)
    instruments = InferenceInstruments(None)
    for minute in range(400):
        monitor.ingest(target(), START + minute * 60, instruments.text())
        monitor.ingest(target("gateway"), START + minute * 60, None)
        for _ in range(50):
            instruments.observe("2xx", random.lognormvariate(-3, 1))
    watched = seen(monitor, 399 * 60, 400 * 60, "dev")

    assert 600 < watched < 390 * 60
    found = monitor.read("run", Question(seconds=watched), START + 399 * 60)
    assert found.requests == pytest.approx(watched * 50 / 60, rel=0.02)
