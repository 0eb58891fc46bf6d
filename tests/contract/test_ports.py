"""A range of two ports for any number of deployments, of which two are up at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from server.engines.base import NO_PORT_LEFT, EngineError
from server.faults import nothing
from server.reconcile.hooks import Hooks
from server.reconcile.ports import OwnPort, take_back
from server.reconcile.reconciler import Reconciler
from server.records import DeploymentKey
from server.states import Phase, Wanted, public_phase
from server.store.database import Database
from server.store.state import Store
from tests.support.engines import InProcessEngine, spec_for, until
from tests.support.records import a_deployment, a_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

LOW, HIGH = 30000, 30001


class HasTwoPorts(InProcessEngine):
    """Gives the first port of two that nobody has."""

    def __init__(self) -> None:
        super().__init__()
        self.open_ports: dict[DeploymentKey, int] = {}

    async def listen(self, key: DeploymentKey, port: int, *, reserved: Collection[int] = ()) -> int:
        if key not in self.open_ports:
            taken = {*self.open_ports.values(), *reserved}
            free = [port] if port else [each for each in (LOW, HIGH) if each not in taken]
            if not free:
                raise EngineError(NO_PORT_LEFT, low=LOW, high=HIGH)
            assert free[0] not in self.open_ports.values()
            self.open_ports[key] = free[0]
        return self.open_ports[key]

    async def unlisten(self, key: DeploymentKey) -> None:
        self.open_ports.pop(key, None)


class World:
    """A store, that engine, a reconciler; models are called by letters."""

    def __init__(self, store: Store) -> None:
        async def silent(_what: Any) -> None:
            return

        hooks = Hooks(
            make_spec=spec_for,
            joined=silent,
            left=silent,
            unused=silent,
            restarted=lambda _key: None,
            ended=lambda _key, _result: None,
        )
        self.store = store
        self.engine = HasTwoPorts()
        self.reconciler = Reconciler(store, self.engine, hooks)

    @staticmethod
    def key(model: str) -> DeploymentKey:
        return DeploymentKey("me", model, "dev")

    def port(self, model: str) -> int:
        return self.store.deployments[self.key(model)].port

    async def deploy(self, model: str, phase: Phase = Phase.SUCCEEDED) -> int:
        run = a_run(model * 32, model=model)
        if run.run_id not in self.store.runs:
            await self.store.add_run(run)
        known = self.store.deployments.get(self.key(model))
        await self.store.want(a_deployment(run, version=1 if known is None else known.version + 1))
        self.reconciler.poke(self.key(model))
        await until(lambda: self.phase(model) is phase)
        return self.port(model)

    def phase(self, model: str) -> Phase:
        made = self.store.deployments[self.key(model)]
        return public_phase(made.wanted, made.version, self.reconciler.seen(made))

    async def stop(self, model: str) -> None:
        made = self.store.deployments[self.key(model)]
        await self.store.want(replace(made, wanted=Wanted.STOPPED))
        self.reconciler.poke(made.key)
        await until(lambda: self.store.deployments[made.key].serving_version is None)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
    await database.open()
    store = Store(database)
    await store.open()
    made = World(store)
    yield made
    await made.reconciler.close()
    await database.close()


async def test_a_stopped_deployment_has_its_port_again_when_it_comes_back(world: World) -> None:
    port = await world.deploy("a")
    await world.stop("a")
    assert await world.deploy("b") != port
    assert await world.deploy("a") == port


async def test_any_number_of_models_shares_a_range_one_after_the_other(world: World) -> None:
    for model in "abcdef":
        assert await world.deploy(model) in (LOW, HIGH)
        await world.stop(model)
    kept = {model: world.port(model) for model in "abcdef"}
    assert set(kept.values()) == {0, LOW, HIGH}
    assert kept["e"]
    assert kept["f"]

    again = Store(world.store._database)
    await again.open()
    assert {key.model: made.port for key, made in again.deployments.items()} == kept


async def test_whoever_was_stopped_first_gives_its_port(world: World) -> None:
    first, second = await world.deploy("a"), await world.deploy("b")
    await world.stop("b")
    await world.stop("a")

    assert await world.deploy("c") == second
    assert (world.port("a"), world.port("b")) == (first, 0)
    # And who lost it gets the next one.
    assert await world.deploy("b") == first


async def test_what_is_up_gives_no_port(world: World) -> None:
    first, second = await world.deploy("a"), await world.deploy("b")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await world.deploy("c")
    assert (world.port("a"), world.port("b"), world.port("c")) == (first, second, 0)
    assert "c" not in {key.model for key in world.engine.open_ports}


async def test_one_that_is_wanted_again_at_that_moment_keeps_its_port(world: World) -> None:
    port = await world.deploy("a")
    await world.stop("a")
    made = world.store.deployments[world.key("a")]
    async with world.store.deciding(made.key):
        taking = asyncio.create_task(take_back(world.store, LOW, HIGH))
        await asyncio.sleep(0)
        await world.store.want(replace(made, wanted=Wanted.UP, version=2))
    assert await taking is False
    assert world.port("a") == port


async def test_a_port_of_another_range_is_of_no_use(world: World) -> None:
    port = await world.deploy("a")
    await world.stop("a")
    assert not await take_back(world.store, HIGH + 1, HIGH + 100)
    assert world.port("a") == port


async def test_what_is_seen_of_one_that_ends_gives_it_no_port_back(world: World) -> None:
    key = world.key("a")
    await world.deploy("a")
    unlisten = world.engine.unlisten

    async def slowly(key: DeploymentKey) -> None:
        await unlisten(key)
        # It is given away while its keeper goes on with what it knew.
        await world.store.saw(replace(world.store.deployments[key], port=0))

    world.engine.unlisten = slowly  # type: ignore[method-assign]
    await world.stop("a")
    assert world.store.deployments[key].port == 0


async def test_a_failed_one_that_was_stopped_gives_no_port_before_it_has_ended(
    world: World,
) -> None:
    await world.deploy("a")
    made = world.store.deployments[world.key("a")]
    failed = replace(made, serving_version=None, failed_version=1, wanted=Wanted.STOPPED)
    await world.store.want(failed)
    await world.store.saw(failed)
    assert not await take_back(world.store, LOW, HIGH)


async def test_few_lose_their_ports_to_another_program(world: World) -> None:
    for model in "abcdef":
        await world.deploy(model)
        await world.stop(model)
    for number, model in enumerate("abcdef"):
        made = world.store.deployments[world.key(model)]
        await world.store.saw(replace(made, port=LOW + number))

    async def taken(*_any: object, **_more: object) -> int:
        raise EngineError(NO_PORT_LEFT, low=LOW, high=LOW + 5)

    world.engine.listen = taken  # type: ignore[assignment]
    with pytest.raises(EngineError):
        await OwnPort(world.key("g"), world.store, world.engine, nothing).open(
            a_deployment(a_run("g" * 32, model="g"))
        )
    assert sum(not world.port(model) for model in "abcdef") == 3
