"""Probes of idle deployments, on replicas without processes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.targets import Target
from server.engines.base import EngineError
from server.reconcile import prober
from server.reconcile.prober import Prober
from server.records import Deployment, DeploymentKey, now
from server.states import Wanted
from tests.support.engines import InProcessReplica, spec_for, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.engines.base import Replica

KEY = DeploymentKey("me", "model", "dev")
SERVING = Deployment(
    key=KEY,
    port=20000,
    wanted=Wanted.UP,
    version=1,
    run_id="run1",
    wanted_at=now(),
    first_wanted_at=now(),
    serving_version=1,
    serving_run_id="run1",
)


class FailsProbes(InProcessReplica):
    async def probe(self) -> None:
        raise EngineError("prediction_timed_out")


class HangsInProbes(InProcessReplica):
    async def probe(self) -> None:
        self.note("probe")
        await asyncio.Event().wait()


class Looked(dict[DeploymentKey, Deployment]):
    """Deployments that count how often they were gone through."""

    times = 0

    def items(self):
        self.times += 1
        return super().items()


class World:
    """A store, a reconciler and a scraper as far as a prober asks them.

    Whenever the prober looks at the clock a pause is over.
    """

    def __init__(self) -> None:
        self.deployments = Looked({KEY: SERVING})
        self.seconds = 0.0
        self.serving: list[Replica] = []
        self.others: dict[DeploymentKey, list[Replica]] = {}
        self.monitor = EmbeddedMonitor()
        self.results: list[bool] = []

    def replicas(self, key: DeploymentKey) -> list[Replica]:
        return self.serving if key == KEY else self.others[key]

    def probed(self, made: Deployment, *, passed: bool) -> None:
        assert made.key == KEY or not passed
        self.results.append(passed)

    def clock(self) -> float:
        self.seconds += 0.02
        return self.seconds

    async def looked(self) -> None:
        """Wait until the prober has looked a few times more."""
        before = self.deployments.times
        await until(lambda: self.deployments.times >= before + 4)

    @asynccontextmanager
    async def probing(self, seconds: float = 0.02) -> AsyncIterator[None]:
        made = Prober(self, self, self, seconds=seconds, clock=self.clock)  # type: ignore[arg-type]
        made.open()
        try:
            yield
        finally:
            await made.close()


@pytest.fixture
def world() -> World:
    return World()


async def replicas(kind: type[InProcessReplica], number: int, journal: list[str]) -> list[Replica]:
    found: list[Replica] = []
    for ordinal in range(number):
        replica = kind(await spec_for(SERVING, ordinal, "run1"), journal)
        found.append(replica)
    return found


async def test_an_idle_deployment_is_probed_again_and_again_in_turns(world: World) -> None:
    journal: list[str] = []
    world.serving = await replicas(InProcessReplica, 2, journal)
    async with world.probing():
        await until(lambda: len(world.results) >= 4)

    assert set(world.results) == {True}
    assert journal[:4] == ["probe 0", "probe 1", "probe 0", "probe 1"]


async def test_a_replica_that_does_not_answer_fails_its_probe(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.serving = await replicas(FailsProbes, 1, [])
    async with world.probing():
        await until(lambda: len(world.results) >= 2)

    assert set(world.results) == {False}
    assert any("of run run1 failed: " in record.getMessage() for record in caplog.records)


async def test_where_nobody_is_home_for_as_long_as_callers_wait_the_probe_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober, "NOBODY_HOME_SECONDS", 0.05)
    async with world.probing():
        await until(lambda: len(world.results) >= 1)

    assert world.results[0] is False


async def test_a_restart_that_callers_would_not_notice_fails_no_probe(world: World) -> None:
    journal: list[str] = []
    async with world.probing():
        await world.looked()
        world.serving = await replicas(InProcessReplica, 1, journal)
        await until(lambda: len(world.results) >= 1)

    assert world.results[0] is True


@pytest.mark.parametrize(
    "made",
    [
        replace(SERVING, wanted=Wanted.STOPPED),
        replace(SERVING, serving_version=None, serving_run_id=None),
    ],
    ids=["stopped", "never served"],
)
async def test_what_should_not_answer_is_not_probed(world: World, made: Deployment) -> None:
    journal: list[str] = []
    world.serving = await replicas(InProcessReplica, 1, journal)
    world.deployments[KEY] = made
    async with world.probing():
        await world.looked()

    assert journal == world.results == []


async def test_a_deployment_that_is_used_is_not_probed(world: World) -> None:
    journal: list[str] = []
    world.serving = await replicas(InProcessReplica, 1, journal)
    target = Target(run_id="run1", model="model", environment="dev", replica="0", version="1")
    instruments = InferenceInstruments(None)
    at = now().timestamp()
    for back in (20, 10, 0):
        world.monitor.ingest(target, at - back, instruments.text())
        instruments.observe("2xx", 0.01)
    async with world.probing():
        await world.looked()

    assert journal == []


async def test_a_long_prediction_under_way_is_use_too(world: World) -> None:
    journal: list[str] = []
    world.serving = await replicas(InProcessReplica, 1, journal)
    target = Target(run_id="run1", model="model", environment="dev", replica="0", version="1")
    instruments = InferenceInstruments(None)
    instruments.in_progress.inc()
    world.monitor.ingest(target, now().timestamp(), instruments.text())
    async with world.probing():
        await world.looked()

    assert journal == []


async def test_a_hand_over_during_a_probe_is_no_failure(world: World) -> None:
    class Replaced(InProcessReplica):
        async def probe(self) -> None:
            world.deployments[KEY] = replace(SERVING, version=2, serving_version=2)
            world.serving = []
            raise EngineError("replica_silent")

    world.serving = await replicas(Replaced, 1, [])
    async with world.probing():
        await until(lambda: world.serving == [])
        await world.looked()

    assert world.results == []


async def test_probes_of_a_deployment_that_hangs_do_not_pile_up(world: World) -> None:
    journal: list[str] = []
    world.serving = await replicas(HangsInProbes, 1, journal)
    async with world.probing():
        await until(lambda: bool(journal))
        await world.looked()

    assert len(journal) == 1


async def test_deployments_that_hang_keep_no_other_from_being_probed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober, "_PLACE_SECONDS", 0.01)
    hanging: list[str] = []
    for number in range(10):
        key = KEY._replace(owner="another", model=f"model{number}")
        world.others[key] = await replicas(HangsInProbes, 1, hanging)
        world.deployments[key] = replace(SERVING, key=key)
    async with world.probing():
        await until(lambda: len(hanging) == 10)
        world.serving = await replicas(InProcessReplica, 1, [])
        await until(lambda: True in world.results)


async def test_zero_seconds_is_never(world: World) -> None:
    journal: list[str] = []
    world.serving = await replicas(InProcessReplica, 1, journal)
    async with world.probing(0):
        await asyncio.sleep(0)

    assert journal == []
    assert world.deployments.times == 0
