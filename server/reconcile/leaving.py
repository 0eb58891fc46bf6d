"""What runs that leave a deployment still need, beside its keeper's steps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from server.faults import Point
from server.states import Wanted

if TYPE_CHECKING:
    from collections.abc import Collection

    from server.engines.base import Replica
    from server.reconcile.hooks import Hooks
    from server.reconcile.replica_set import ReplicaSet
    from server.records import DeploymentKey
    from server.store.state import Store


class Leaving:
    """Lets replicas of one deployment end, and sees to the GPUs of runs that have left it."""

    def __init__(self, key: DeploymentKey, store: Store, hooks: Hooks) -> None:
        self._key = key
        self._store = store
        self._hooks = hooks
        self._tasks: dict[asyncio.Task[None], str] = {}
        # Those that were wanted or served here at the last look.
        self._runs: set[str] = set()

    def open(self) -> None:
        """Take notice of the runs that are here."""
        self._runs = self._named()

    def holds(self, run_id: str) -> bool:
        """Whether something that a run had is still ending."""
        return run_id in self._tasks.values()

    def retire(self, live: ReplicaSet) -> None:
        """Let replicas finish what they have, and end them."""
        self._keep(asyncio.create_task(self._drain(live)), live.run_id)

    async def end(self, live: ReplicaSet) -> None:
        """Do the same, and wait for it."""
        task = asyncio.create_task(self._drain(live))
        self._keep(task, live.run_id)
        await task

    def notice(self) -> None:
        """See to the GPUs of runs that are neither wanted nor serving here any more."""
        runs = self._named()
        for run_id in self._runs - runs:
            task = asyncio.create_task(self._see_to(run_id, list(self._tasks)))
            self._keep(task, run_id)
        self._runs = runs

    async def wait(self) -> None:
        """Wait until nobody is leaving any more."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Let go of what is half done."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, task: asyncio.Task[None], run_id: str) -> None:
        self._tasks[task] = run_id
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def _named(self) -> set[str]:
        made = self._store.deployments.get(self._key)
        if made is None:
            return set()
        wanted = made.run_id if made.wanted is Wanted.UP else None
        return {run_id for run_id in (wanted, made.serving_run_id) if run_id is not None}

    async def _drain(self, live: ReplicaSet) -> None:
        async def left(replica: Replica) -> None:
            self._hooks.reached(Point.HANDOVER_DRAINED)
            await self._hooks.left(replica)

        await live.drain(left)
        self._hooks.reached(Point.HANDOVER_ENDED)

    async def _see_to(self, run_id: str, leaving: Collection[asyncio.Task[None]]) -> None:
        if leaving:
            await asyncio.wait(leaving)
        await self._hooks.unused(run_id)
        made = self._store.deployments.get(self._key)
        is_up = made is not None and made.wanted is Wanted.UP
        self._hooks.reached(Point.HANDOVER_RELEASED if is_up else Point.STOP_RELEASED)
