"""One trial: a way made ready, one thing that fails on it, and the judgement of what is left."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from tests.support.faults.judge import INTERRUPTED
from tests.support.faults.stage import quietly

if TYPE_CHECKING:
    from server.faults import Point
    from tests.support.faults.stage import Stage
    from tests.support.faults.ways import Way
    from tests.support.faulty_machine.machine import Calls

_ACT_SECONDS = 90.0
# What a request may be refused with, and a step or roll-out may end in, while the machine fails.
NAMED = {
    "disk_full": 507,
    "disk_failing": 503,
    "machine_exhausted": 503,
    "database_unavailable": 503,
    "database_busy": 503,
}


async def kill_at_point(stage: Stage, way: Way, point: Point, nth: int) -> bool:
    """Kill the service at a point; whether it came to it."""
    act = await way.ready(stage)
    stage.plan.arm(point, nth)
    died = await stage.until_death(act, way.after)
    stage.plan.disarm()
    await _after(stage, way, died=died)
    return died


async def kill_at_call(stage: Stage, way: Way, calls: Calls, nth: int, *, torn: bool) -> bool:
    """Kill the service right before, or in the middle of, its n-th call; whether it came to it."""
    act = await way.ready(stage)
    stage.machine.kill(calls, nth=nth, torn=torn)
    died = await stage.until_death(act, way.after)
    stage.machine.heal()
    await _after(stage, way, died=died)
    return died


async def _after(stage: Stage, way: Way, *, died: bool) -> None:
    if way.is_restart and stage.service.runs:
        await stage.service.kill()
    if died or way.is_restart:
        await stage.after_death()
    await stage.clear()


async def count_calls(stage: Stage, way: Way, calls: Calls) -> int:
    """Go a way without a fault, and return how many calls of these kinds there were."""
    act = await way.ready(stage)
    stage.machine.count(calls)
    await stage.launched()
    async with asyncio.timeout(_ACT_SECONDS):
        await quietly(act)
    if stage.service.runs:
        # What goes on behind the answer belongs to the way.
        await stage.judge.judge()
    seen = stage.machine.seen
    stage.machine.heal()
    await _after(stage, way, died=False)
    return seen


async def fail_at_call(
    stage: Stage, way: Way, calls: Calls, code: int, nth: int, *, lasting: bool = False
) -> bool:
    """Let a call fail, and all further ones if ``lasting``; whether it came to it.

    What is refused then is refused by name, and nothing is lost or stuck; once the machine is
    healthy the same is asked again and comes to a good end.
    """
    act = await way.ready(stage)
    stage.client.refusals.clear()
    stage.judge.excused = INTERRUPTED | frozenset(NAMED)
    stage.machine.fail(calls, code, nth=nth, lasting=lasting)
    async with asyncio.timeout(_ACT_SECONDS):
        await quietly(act)
    if not lasting:
        await stage.judge.judge_states()
    met = stage.machine.seen >= nth
    stage.machine.heal()
    for refusal in stage.client.refusals:
        if NAMED.get(refusal.code) != refusal.status:
            stage.judge.complain("unnamed", f"{errno.errorcode[code]}: {refusal}")
    await stage.judge.judge()
    stage.judge.excused = INTERRUPTED
    async with asyncio.timeout(_ACT_SECONDS):
        await act()
    await stage.judge.judge()
    await stage.clear()
    return met
