"""The embedded monitor and a real Prometheus, on the same samples."""

from __future__ import annotations

import math
from dataclasses import fields
from random import Random
from typing import TYPE_CHECKING

import aiohttp
import pytest

from metrics.client import PrometheusClient
from metrics.embedded import EmbeddedMonitor
from metrics.slo import Readings
from tests.support import prometheus_server
from tests.support.counter_histories import BEGIN, History, openmetrics, random_histories

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

SECONDS = 900.0
# Prometheus' own lookback: `timestamp(up)` has no answer for what is older.
LOOKBACK = 300.0


@pytest.fixture(scope="module")
def histories() -> list[History]:
    return random_histories(20260801, runs=6, seconds=SECONDS)


@pytest.fixture(scope="module")
def prometheus(histories: list[History], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("prometheus")
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
    checkpoints = sorted(BEGIN + random.uniform(5, SECONDS + 90) for _ in range(70))
    # One as it is in the service, coarse after two minutes and asked about a run's whole life;
    # one that keeps every scrape and is asked about any window.
    usual = EmbeddedMonitor()
    fine = EmbeddedMonitor(fine_seconds=2 * SECONDS)
    scrapes = sorted(
        ((at, history.target, text) for history in histories for at, text in history.scrapes),
        key=lambda scrape: scrape[0],
    )
    begun = {}
    for at, target, _ in scrapes:
        begun.setdefault(target.run_id, at)
    compared = 0
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
            environment = random.choice((None, "dev", "prod"))
            life = round(max(at - begun[run], 0) + 1, 3)
            anything = round(random.uniform(60, SECONDS), 3)
            for monitor, window in ((usual, life), (fine, anything)):
                theirs = await client.read(run, environment, at, window)
                ours = monitor.read(run, environment, at, window)
                compared += compare(ours, theirs)
    assert compared >= 600


def compare(ours: Readings, theirs: Readings) -> int:
    """How many values were there on both sides, all of them equal."""
    compared = 0
    for name in sorted({field.name for field in fields(Readings)} - {"at"}):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if name == "last_scrape_at" and mine is not None and ours.at - mine > LOOKBACK:
            mine = None
        # A sum over nothing is no answer there and 0 here.
        mine = None if name == "samples" and mine == 0 else mine
        assert (mine is None) == (other is None), f"{name}: {mine} here, {other} there"
        if mine is not None:
            assert math.isclose(mine, other, rel_tol=1e-9, abs_tol=1e-12), name
            compared += 1
    return compared
