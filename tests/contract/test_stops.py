"""Stops that come before anything serves: told as done, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from server.states import Phase, Wanted
from tests.support.engines import NeverReady, until
from tests.support.reconciled_world import KEY

if TYPE_CHECKING:
    from tests.support.reconciled_world import World


async def events_of(world: World, run_id: str) -> list[str]:
    return [each.code for each in await world.store.events.page(run_id, 0)]


async def test_a_stop_during_a_start_is_told_as_done_once(world: World) -> None:
    world.engine.kinds[2] = NeverReady
    await world.want(1)
    await world.reach(Phase.SUCCEEDED)
    await world.want(2)
    await until(lambda: "start 2" in world.engine.journal)
    await world.want(2, Wanted.STOPPED)
    await until(lambda: {"stop 1", "stop 2"} <= set(world.engine.journal))

    async def told() -> list[str]:
        world.reconciler.poke(KEY)
        await asyncio.sleep(0)
        return await events_of(world, "run2")

    while "event_stopped" not in await told():
        pass
    await world.reconciler.close()
    # A service that starts anew tells it no second time.
    world.reconciler = world.fresh_reconciler()
    for _ in range(20):
        assert (await told()).count("event_stopped") == 1
    assert (await events_of(world, "run1")).count("event_stopped") == 1
