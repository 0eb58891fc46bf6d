"""The shortest orders of events in which the service once broke its word, each found by trying any."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from server import keys
from server.states import Phase
from tests.support import onnx_files
from tests.support.engines import until
from tests.support.service import Caller
from tests.support.weightless import Machine, Model, WeightlessService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MODEL = onnx_files.linear()
GPU, OTHER_GPU = "GPU-a", "GPU-b"


class World:
    """A weightless service, and one caller whose runs all belong to one model."""

    def __init__(self, service: WeightlessService, caller: Caller) -> None:
        self.service = service
        self.machine = service.machine
        self.caller = caller

    async def prepared(self, content: Model = Model.SOUND, gpu: str = GPU) -> str:
        run_id = await self.caller.upload(MODEL, content.value, "shared")
        assert (await self.caller.prepare(run_id, gpu))["phase"] == "Succeeded"
        return run_id

    async def deployed(self, content: Model = Model.SOUND, gpu: str = GPU) -> str:
        run_id = await self.prepared(content, gpu)
        await self.caller.deploy(run_id)
        return run_id

    async def begin(self, path: str, method: str = "POST") -> tuple[int, Any]:
        return await self.caller.call(method, path)

    async def cut(self) -> None:
        await self.service.cut()
        self.caller.url = self.service.url

    def holder(self, gpu: str = GPU) -> str | None:
        lease = self.service.store.leases.get(gpu)
        return None if lease is None else lease.run_id

    def served(self) -> list[tuple[str, int]]:
        return [(one.spec.run_id, one.spec.version) for one in self.machine.serving]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        WeightlessService(tmp_path, Machine(), environments=("dev",)) as service,
        Caller(service.url) as caller,
    ):
        yield World(service, caller)
        service.machine.let_go()


# ── who holds a GPU


async def test_a_run_that_failed_to_serve_gives_its_gpu_back_when_another_one_replaces_it(
    world: World,
) -> None:
    await world.deployed(Model.UNSERVABLE, GPU)
    await world.deployed(Model.SOUND, OTHER_GPU)

    await until(lambda: world.holder() is None)


async def test_a_run_whose_successor_came_up_after_a_restart_gives_its_gpu_back(
    world: World,
) -> None:
    await world.deployed(gpu=GPU)
    second = await world.prepared(gpu=OTHER_GPU)
    world.machine.hold()
    await world.caller.post(f"/deploy/start?runId={second}&env=dev")

    await world.cut()
    world.machine.let_go()

    await until(lambda: world.holder() is None)
    assert world.holder(OTHER_GPU) == second


async def test_a_service_killed_right_after_a_stop_gives_the_gpu_back_when_it_is_back(
    world: World,
) -> None:
    run_id = await world.deployed()
    await world.caller.post(f"/deploy/stop?runId={run_id}&env=dev")

    await world.cut()

    await until(lambda: world.holder() is None)


async def test_a_deployment_that_starts_while_its_gpu_is_given_back_has_it(world: World) -> None:
    run_id = await world.deployed()
    await world.caller.post(f"/deploy/stop?runId={run_id}&env=dev")
    await until(lambda: world.holder() is None)
    store = world.service.store
    await store.save_preparation(store.preparation(run_id), lease=GPU)
    devices = world.service.app[keys.DEVICES]

    async with store._writing:
        releasing = asyncio.create_task(devices.release_if_unused(run_id))
        starting = asyncio.create_task(world.begin(f"/deploy/start?runId={run_id}&env=dev"))
        await asyncio.sleep(0.1)
    await releasing

    assert (await starting)[0] == 200
    assert world.holder() == run_id


async def test_a_run_that_gives_its_gpu_back_while_its_successor_is_deleted_can_be_deployed(
    world: World,
) -> None:
    first = await world.deployed()
    devices = world.service.app[keys.DEVICES]
    releasing, going_on = asyncio.Event(), asyncio.Event()

    async def until_empty(_gpu: str) -> None:
        releasing.set()
        await going_on.wait()

    devices._until_empty = until_empty  # type: ignore[method-assign]
    second = await world.deployed(gpu=OTHER_GPU)
    await releasing.wait()
    deleting = asyncio.create_task(world.begin(f"/runs/{second}", "DELETE"))
    await until(lambda: second not in world.service.store.runs)
    deploying = asyncio.create_task(world.begin(f"/deploy/start?runId={first}&env=dev"))
    await asyncio.sleep(0.1)
    going_on.set()

    async with asyncio.timeout(20):
        assert (await deleting)[0] == 200
        assert (await deploying)[0] == 200
    await until(lambda: world.served() == [(first, 1)])
    assert world.holder() == first


async def test_a_run_is_not_prepared_anew_and_deployed_at_once(world: World) -> None:
    run_id = await world.prepared()
    store = world.service.store

    async with store._writing:
        preparing = asyncio.create_task(world.begin(f"/prepare/start?runId={run_id}&gpuId=cpu"))
        # It has decided, and waits until it may write.
        await until(store.deciding(run_id).locked)
        deploying = asyncio.create_task(world.begin(f"/deploy/start?runId={run_id}&env=dev"))
        await asyncio.sleep(0.1)

    assert (await preparing)[0] == 200
    status, body = await deploying
    assert (status, body["code"]) == (409, "not_prepared")


# ── who serves


@pytest.mark.parametrize("successor", [Model.SOUND, Model.UNSERVABLE])
async def test_a_deleted_run_serves_no_longer_while_its_successor_starts(
    world: World, successor: Model
) -> None:
    first = await world.deployed()
    second = await world.prepared(successor, OTHER_GPU)
    world.machine.hold()
    await world.caller.post(f"/deploy/start?runId={second}&env=dev")

    assert (await world.begin(f"/runs/{first}", "DELETE"))[0] == 200

    assert first not in {run_id for run_id, _ in world.served()}
    world.machine.let_go()
    path = f"/deploy/status?runId={second}&env=dev"
    ended = await world.caller.until(path, lambda now: now["phase"] != "Running")
    assert ended["phase"] == ("Succeeded" if successor is Model.SOUND else "Failed")
    assert first not in {run_id for run_id, _ in world.served()}


async def test_a_run_deployed_while_the_one_before_it_is_deleted_serves_itself(
    world: World,
) -> None:
    first = await world.deployed()
    second = await world.prepared(gpu=OTHER_GPU)
    engine = world.service.app[keys.RECONCILER]._engine
    attended, going_on = asyncio.Event(), asyncio.Event()

    async def attend_slowly(*_: object, **__: object) -> None:
        attended.set()
        await going_on.wait()

    # Whoever keeps the deployment looks up only when both have happened.
    engine.attend = attend_slowly  # type: ignore[method-assign]
    [key] = world.service.store.deployments
    world.service.app[keys.RECONCILER].poke(key)
    await attended.wait()
    deleting = asyncio.create_task(world.begin(f"/runs/{first}", "DELETE"))
    await until(lambda: first not in world.service.store.runs)
    deploying = asyncio.create_task(world.begin(f"/deploy/start?runId={second}&env=dev"))
    await asyncio.sleep(0.1)
    going_on.set()

    assert (await deleting)[0] == 200
    assert (await deploying)[0] == 200
    await until(lambda: world.served() == [(second, 1)])


async def test_a_run_deployed_while_its_gpu_is_freed_and_its_successor_deleted_waits_for_neither(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await world.deployed()
    second = await world.prepared(gpu=OTHER_GPU)
    # Whoever frees the first one's GPU looks at it for a second, and then takes the run's lock.
    monkeypatch.setattr("server.pipeline.devices._EMPTY_PAUSE_SECONDS", 0.05)
    world.machine.busy.add(GPU)
    await world.caller.deploy(second)
    deleting = asyncio.create_task(world.begin(f"/runs/{second}", "DELETE"))
    await until(lambda: second not in world.service.store.runs)
    deploying = asyncio.create_task(world.begin(f"/deploy/start?runId={first}&env=dev"))

    async with asyncio.timeout(20):
        assert (await deleting)[0] == 200
        assert (await deploying)[0] in {200, 409}


async def test_a_replica_whose_time_comes_while_the_keeper_is_busy_is_started_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would notice by itself after a while; here that is an hour.
    monkeypatch.setattr("server.reconcile.keeper.RESYNC_SECONDS", 3600.0)
    monkeypatch.setattr("server.reconcile.keeper.NOBODY_HOME_SECONDS", 3600.0)
    monkeypatch.setattr("server.reconcile.backoff.FIRST_SECONDS", 0.2)
    run_id = await world.deployed()
    engine = world.service.app[keys.RECONCILER]._engine

    async def attend_slowly(*_: object, **__: object) -> None:
        await asyncio.sleep(0.5)

    engine.attend = attend_slowly  # type: ignore[method-assign]
    [replica] = world.machine.serving
    replica.crash()

    await until(lambda: world.served() == [(run_id, 1)])


@pytest.mark.parametrize("turns", range(5))
async def test_a_service_that_is_told_something_while_it_closes_closes(
    world: World, turns: int
) -> None:
    await world.deployed()
    reconciler = world.service.app[keys.RECONCILER]
    [key] = world.service.store.deployments

    reconciler.poke(key)
    for _ in range(turns):
        await asyncio.sleep(0)

    async with asyncio.timeout(20):
        await reconciler.close()


# ── what was shown


async def test_a_preparation_is_not_shown_as_failed_before_that_is_kept(world: World) -> None:
    run_id = await world.caller.upload(MODEL, Model.UNLOADABLE.value)
    world.machine.hold()
    await world.caller.post(f"/prepare/start?runId={run_id}")
    store = world.service.store
    await until(lambda: store.preparation(run_id).steps[4].status is Phase.RUNNING)

    async with store._writing:
        world.machine.let_go()
        await asyncio.sleep(0.1)
        shown = await world.caller.get(f"/prepare/status?runId={run_id}")

    assert shown["phase"] == "Running"
    path = f"/prepare/status?runId={run_id}"
    assert (await world.caller.until(path, lambda now: now["phase"] != "Running"))[
        "phase"
    ] == "Failed"
