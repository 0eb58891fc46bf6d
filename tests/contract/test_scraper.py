"""The embedded monitor's scraper on replicas without processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.reading import Question, Reading, positive
from server.engines.base import EngineError
from server.reconcile.scraper import Scraper, target_of
from server.records import Deployment, DeploymentKey, now
from server.states import Wanted
from tests.support.engines import InProcessReplica, spec_for, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from metrics.targets import Target

KEY = DeploymentKey("me", "model", "dev")
MADE = Deployment(
    key=KEY,
    port=20000,
    wanted=Wanted.UP,
    version=1,
    run_id="run1",
    wanted_at=now(),
    first_wanted_at=now(),
)


class KnowsOneDeployment:
    """A store as far as a scraper asks it."""

    def __init__(self) -> None:
        self.deployments = {KEY: MADE}


class Counting(InProcessReplica):
    """Answers scrapes with real figures."""

    figures: InferenceInstruments

    async def scrape(self) -> str:
        return self.figures.text()


class BreaksScrapes(InProcessReplica):
    """Fails in a way that nobody foresaw."""

    async def scrape(self) -> str:
        raise RuntimeError("session is closed")


class BreaksOff(Counting):
    """Answers no scrape in time."""

    async def scrape(self) -> str:
        raise EngineError("replica_silent", evidence="TimeoutError")


class TooBusyAtFirst(Counting):
    """Does not answer its first scrape in time."""

    scrapes = 0

    async def scrape(self) -> str:
        self.scrapes += 1
        if self.scrapes == 1:
            raise EngineError("replica_silent", evidence="TimeoutError")
        return self.figures.text()


@pytest.fixture
def seen() -> list[list[Target]]:
    """The targets each time that there were others than before."""
    return []


def read(scraper: Scraper, run: str = "run1") -> Reading:
    question = Question(seconds=600, health=True)
    return scraper.monitor.read(run, question, now().timestamp())


@pytest.fixture
async def scraper(seen: list[list[Target]]) -> AsyncIterator[Scraper]:
    made = Scraper(
        KnowsOneDeployment(),  # type: ignore[arg-type]
        EmbeddedMonitor(),
        seconds=0.02,
        scraped=lambda _ok, _seconds: None,
        changed=lambda: seen.append(made.targets()),
    )
    made.open()
    yield made
    await made.close()


async def counting() -> Counting:
    replica = Counting(await spec_for(MADE, 1, "run1"), [])
    replica.spec.model["digest"] = "d"
    replica.figures = InferenceInstruments(None)
    return replica


async def test_a_restarted_replica_is_scraped_although_the_dead_one_broke_its_scrapes(
    scraper: Scraper,
) -> None:
    first = await counting()
    await scraper.joined(first)
    first.__class__ = BreaksScrapes
    await until(lambda: positive(read(scraper).scrapes) > 0)
    second = await counting()
    await scraper.joined(second)
    second.figures.observe("2xx", 0.01)
    await until(lambda: positive(read(scraper).requests) > 0)


async def test_a_replica_that_is_too_busy_for_its_first_scrape_is_scraped_again(
    scraper: Scraper,
) -> None:
    """Nobody has written down yet that its version serves: it is admitted after this scrape."""
    replica = await counting()
    replica.__class__ = TooBusyAtFirst
    await scraper.joined(replica)
    assert target_of(replica) in scraper.targets()
    await until(lambda: positive(read(scraper).up) > 0)
    replica.figures.observe("2xx", 0.01)
    await until(lambda: positive(read(scraper).requests) > 0)


async def test_an_old_version_that_is_busy_keeps_its_place_until_it_ended(scraper: Scraper) -> None:
    replica = await counting()
    await scraper.joined(replica)
    newer = replace(MADE, version=2, serving_version=2, serving_run_id="run1")
    scraper._store.deployments[KEY] = newer
    replica.__class__ = BreaksOff
    await until(lambda: positive(read(scraper).up) < 1)
    assert target_of(replica) in scraper.targets()
    replica.crash()
    await until(lambda: target_of(replica) not in scraper.targets())


async def test_a_replica_that_left_is_no_target_any_more(scraper: Scraper) -> None:
    replica = await counting()
    await scraper.joined(replica)
    assert target_of(replica) in scraper.targets()
    text = await scraper.fresh_text(target_of(replica))
    assert text is not None
    assert "inference_requests_total" in text
    await scraper.left(replica)
    assert target_of(replica) not in scraper.targets()
    assert await scraper.fresh_text(target_of(replica)) is None


async def test_whoever_lists_the_targets_is_told_of_each_change(
    scraper: Scraper, seen: list[list[Target]]
) -> None:
    await until(lambda: len(seen) == 1)
    replica = await counting()
    await scraper.joined(replica)
    assert seen[-1] == scraper.targets()
    assert len(seen) == 2
    # A replica that restarts keeps its labels: there is nothing new to list.
    await scraper.joined(await counting())
    assert len(seen) == 2
    assert scraper.find(target_of(replica).id) == target_of(replica)


async def test_a_hand_over_lists_the_new_version_before_the_old_one_is_gone(
    scraper: Scraper, seen: list[list[Target]]
) -> None:
    await until(lambda: len(seen) == 1)
    old, new = await counting(), await counting()
    new.spec = replace(new.spec, version=2)
    await scraper.joined(old)
    await scraper.joined(new)
    await scraper.left(old)
    versions = [sorted(one.version for one in listed if not one.is_gateway) for listed in seen]
    assert versions == [[], ["1"], ["1", "2"], ["2"]]
    # Taken down: whoever asks for the list next, and the file, have none of it.
    await scraper.left(new)
    scraper._store.deployments.clear()
    await until(lambda: scraper.targets() == [])
    assert seen[-1] == []
    # What it showed still counts.
    assert positive(read(scraper).scrapes) > 0


async def test_targets_go_with_their_deployment(scraper: Scraper, seen: list[list[Target]]) -> None:
    await until(lambda: len(seen) == 1)
    scraper._store.deployments.clear()
    await until(lambda: scraper.targets() == [])
    assert seen[-1] == []


async def test_probes_are_counted_in_the_name_of_what_serves(scraper: Scraper) -> None:
    serving = replace(MADE, version=2, run_id="run2", serving_version=1, serving_run_id="run1")
    scraper._store.deployments[KEY] = serving
    await until(lambda: len(scraper.targets()) == 2)
    scraper.probed(serving, passed=True)
    scraper.probed(serving, passed=False)
    await until(lambda: positive(read(scraper).probes_failed) > 0)

    assert positive(read(scraper).probes_passed) > 0
    assert not positive(read(scraper, "run2").probes_passed)
    assert not positive(read(scraper).requests)
    scraper.probed(MADE, passed=True)


async def test_refusals_are_a_target_of_their_own(scraper: Scraper) -> None:
    await until(lambda: any(target.is_gateway for target in scraper.targets()))
    scraper.refused(KEY)
    await until(lambda: positive(read(scraper).overloaded) > 0)

    # They took no time of the model's, so they are no quick answers.
    question = Question(seconds=600, quantiles=(0.95,))
    reading = scraper.monitor.read("run1", question, now().timestamp())
    assert positive(reading.requests) > 0
    assert (reading.timed, reading.durations) == (0, (None,))


async def test_gateways_are_scraped_again_after_what_nobody_foresaw(
    scraper: Scraper, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = asyncio.Event()
    ingest = scraper.monitor.ingest

    def breaks_once(*_any: object) -> bool:
        monkeypatch.setattr(scraper.monitor, "ingest", ingest)
        seen.set()
        raise RuntimeError("no such tier")

    monkeypatch.setattr(scraper.monitor, "ingest", breaks_once)
    await seen.wait()
    await until(lambda: len(scraper.monitor) > 0)
