"""The embedded monitor's scraper on replicas without processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from server.reconcile.scraper import Scraper, target_of
from server.records import Deployment, DeploymentKey, now
from server.states import Wanted
from tests.support.engines import InProcessReplica, spec_for, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


@pytest.fixture
async def scraper() -> AsyncIterator[Scraper]:
    made = Scraper(
        KnowsOneDeployment(),  # type: ignore[arg-type]
        EmbeddedMonitor(),
        seconds=0.02,
        scraped=lambda _ok, _seconds: None,
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
    await until(lambda: scraper.monitor.read("run1", None, now().timestamp()).samples != 0)
    second = await counting()
    await scraper.joined(second)
    second.figures.observe("2xx", 0.01)
    await until(lambda: (scraper.monitor.read("run1", None, now().timestamp()).slo_total or 0) > 0)


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


async def test_refusals_are_a_target_of_their_own(scraper: Scraper) -> None:
    await until(lambda: any(target.is_gateway for target in scraper.targets()))
    scraper.refused(KEY)
    await until(lambda: (scraper.monitor.read("run1", None, now().timestamp()).slo_errors or 0) > 0)
