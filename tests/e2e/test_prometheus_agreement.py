"""The embedded monitor and a real Prometheus, on the same samples."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields, replace
from random import Random
from typing import TYPE_CHECKING

import aiohttp
import pytest

from metrics import names
from metrics.client import PrometheusClient
from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.reading import Question, Reading, cell_seconds
from metrics.targets import Target
from tests.support import prometheus_server
from tests.support.counter_histories import BEGIN, History, openmetrics, random_histories

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

SECONDS = 900.0
CHECKPOINTS = 150
NUMBERS = {"scrapes", "recent_scrapes", "probes_passed", "probes_failed"}
# Prometheus' own lookback: `timestamp(up)` has no answer for what is older.
LOOKBACK = 300.0


@pytest.fixture(scope="module")
def histories() -> list[History]:
    return random_histories(20260801, runs=6, seconds=SECONDS)


@pytest.fixture(scope="module")
def prometheus(histories: list[History], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with filled(histories, tmp_path_factory.mktemp("prometheus")) as url:
        yield url


@contextmanager
def filled(histories: list[History], folder: Path) -> Iterator[str]:
    """A Prometheus that has scraped these."""
    samples, data, config = folder / "samples.txt", folder / "data", folder / "prometheus.yml"
    with samples.open("w") as file:
        file.writelines(f"{line}\n" for line in openmetrics(histories))
    made = prometheus_server.promtool(
        "tsdb", "create-blocks-from", "openmetrics", str(samples), str(data)
    )
    assert made.returncode == 0, made.stderr
    config.write_text("global: {}\n")
    with prometheus_server.running(config, data) as url:
        yield url


async def test_every_reading_equals_that_of_a_real_prometheus(
    histories: list[History], prometheus: str
) -> None:
    random = Random(7)
    checkpoints = sorted(BEGIN + random.uniform(5, SECONDS + 90) for _ in range(CHECKPOINTS))
    # One as it is in the service, which holds the last minutes singly and is asked about those
    # and about a run's whole life; one that holds every scrape and is asked about any window.
    usual, fine = EmbeddedMonitor(), EmbeddedMonitor(fine_seconds=2 * SECONDS)
    scrapes = sorted(
        ((at, history.target, text) for history in histories for at, text in history.scrapes),
        key=lambda scrape: scrape[0],
    )
    begun: dict[str, float] = {}
    for at, target, _ in scrapes:
        begun.setdefault(target.run_id, at)
    compared: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session:
        client = PrometheusClient(session, prometheus, timeout=20)
        place = 0
        for checkpoint in checkpoints:
            at = round(checkpoint, 3)
            while place < len(scrapes) and scrapes[place][0] <= at:
                for monitor in (usual, fine):
                    monitor.ingest(scrapes[place][1], scrapes[place][0], scrapes[place][2])
                place += 1
            run = random.choice(sorted(begun))
            life = round(max(at - begun[run], 0) + 1, 3)
            anything = round(random.uniform(60, SECONDS), 3)
            windows = [(usual, 60.0), (usual, 300.0), (usual, life), (fine, anything)]
            questions = [ask(random, seconds) for _, seconds in windows]
            # Half of a life begins between two samples that are still held.
            questions[2] = replace(questions[2], recent=False)
            theirs = await client.read(run, questions, at)
            for (monitor, _), question, other in zip(windows, questions, theirs, strict=True):
                compared += compare(monitor.read(run, question, at), other)
    assert compared.total() >= 5000, compared
    assert min(compared.values()) >= 100, compared


async def test_a_series_is_that_of_a_real_prometheus(
    histories: list[History], prometheus: str
) -> None:
    fine = EmbeddedMonitor(fine_seconds=2 * SECONDS)
    for history in histories:
        for at, text in history.scrapes:
            fine.ingest(history.target, at, text)
    compared: Counter[str] = Counter()
    question = Question(seconds=60, quantiles=(0.5, 0.95, 0.99), in_progress=True)
    async with aiohttp.ClientSession() as session:
        client = PrometheusClient(session, prometheus, range_timeout=20)
        for run in sorted({history.target.run_id for history in histories}):
            theirs = await client.series(run, question, BEGIN + 30, BEGIN + SECONDS, 15)
            assert len(theirs) == 59
            for other in theirs:
                compared += compare(fine.read(run, question, other.at), other)
    assert min(compared[name] for name in ("requests", "durations.2", "in_progress")) >= 200


HOUR = 3600.0


async def test_a_long_window_has_the_durations_of_young_and_of_quiet_replicas(
    tmp_path: Path,
) -> None:
    """Prometheus looks at some samples of a long window only, and the embedded monitor at its own."""
    histories = [
        life("young", "0", begin=-0.6, seconds=30, latency=0.3),
        life("idle and young", "0", begin=-80, seconds=280, latency=None),
        life("idle and young", "1", begin=-1.5, seconds=30, latency=0.3),
        life("busy long ago", "0", begin=-80, seconds=280, latency=None),
        life("busy long ago", "1", begin=-60, end=-50, seconds=120, latency=0.3),
        life("replaced", "0", begin=-80, end=-5, seconds=280, latency=0.02),
        life("replaced", "1", begin=-5, seconds=60, latency=0.4),
        life("soon over", "0", begin=-50, end=-49.9, seconds=15, latency=0.3),
    ]
    monitor = EmbeddedMonitor()
    for at, target, text in sorted(
        ((at, one.target, text) for one in histories for at, text in one.scrapes),
        key=lambda scrape: scrape[0],
    ):
        monitor.ingest(target, at, text)
    compared = 0
    with filled(histories, tmp_path) as url:
        async with aiohttp.ClientSession() as session:
            client = PrometheusClient(session, url, long_timeout=60)
            for run in sorted({one.target.run_id for one in histories}):
                for hours in (6.1, 12.0, 25.5, 72.0, 720.0):
                    question = Question(seconds=hours * HOUR, quantiles=(0.95,))
                    [theirs] = await client.read(run, [question], BEGIN)
                    ours = monitor.read(run, question, BEGIN)
                    assert theirs.is_sketchy == (run == "soon over" and hours >= 72), run
                    if theirs.is_sketchy:
                        continue
                    where = f"{run}, {hours} h"
                    if ours.durations in {(None,), ()}:
                        assert theirs.durations == ours.durations, where
                        continue
                    assert theirs.durations == pytest.approx(ours.durations, rel=0.03), where
                    assert theirs.timed == pytest.approx(ours.timed, rel=0.05), where
                    compared += 1
    assert compared >= 16


def life(
    run: str, replica: str, *, begin: float, end: float = 0, seconds: float, latency: float | None
) -> History:
    """A replica from one hour to another that answers once between every two scrapes."""
    target = Target(run_id=run, model="m", environment="prod", replica=replica, version="1")
    history, instruments = History(target=target), InferenceInstruments(None)
    for number in range(round((end - begin) * HOUR / seconds)):
        at = BEGIN + begin * HOUR + number * seconds + 0.5
        history.scrapes.append((at, instruments.text()))
        if latency is not None:
            instruments.observe("2xx", latency * (1 + number % 10 / 50))
    return history


async def test_both_know_for_how_long_they_watched(
    histories: list[History], prometheus: str
) -> None:
    """Prometheus is asked in cells, so the two differ by two of them at most."""
    monitor = EmbeddedMonitor(gap_seconds=20)
    for history in histories:
        for at, text in history.scrapes:
            monitor.ingest(history.target, at, text)
    shares = set()
    async with aiohttp.ClientSession() as session:
        client = PrometheusClient(session, prometheus, timeout=20)
        for run in sorted({history.target.run_id for history in histories}):
            for seconds in (300.0, SECONDS, 3 * SECONDS):
                for back in (0, 200):
                    at = BEGIN + SECONDS - back
                    question = Question(seconds=seconds, environment="dev", watched=True)
                    [theirs] = await client.read(run, [question], at)
                    ours = monitor.read(run, question, at).watched
                    assert theirs.watched == pytest.approx(ours, abs=2 * cell_seconds(seconds))
                    shares.add(round((ours or 0) / seconds, 1))
    assert {1.0, 0.3} <= shares, shares


def ask(random: Random, seconds: float) -> Question:
    return Question(
        seconds=seconds,
        environment=random.choice((None, None, "dev", "prod")),
        quantiles=random.choice(((0.95,), (0.5, 0.95, 0.99))),
        bound=random.choice(names.LATENCY_BOUNDS),
        health=True,
        recent=True,
        in_progress=True,
    )


def values_of(reading: Reading) -> dict[str, float | None]:
    found = {
        field.name: getattr(reading, field.name)
        for field in fields(Reading)
        if field.name not in {"at", "seconds", "durations"}
    }
    for number, value in enumerate(reading.durations):
        found[f"durations.{number}"] = value
    return found


def compare(ours: Reading, theirs: Reading) -> Counter[str]:
    """How many values were there on both sides, all of them equal."""
    compared: Counter[str] = Counter()
    mine, other = values_of(ours), values_of(theirs)
    for name in mine.keys() | other.keys():
        one, two = mine.get(name), other.get(name)
        if name == "last_scrape_at" and one is not None and ours.at - one > LOOKBACK:
            one = None
        # A sum over nothing is no answer there and 0 here.
        if name in NUMBERS and not one and two is None:
            continue
        assert (one is None) == (two is None), f"{name}: {one} here, {two} there"
        if one is not None and two is not None:
            assert math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-12), name
            compared[name] += 1
    return compared
