"""Gives every deployment its keeper, and ends them with the service."""

from __future__ import annotations

import asyncio
import os
from contextvars import Context
from typing import TYPE_CHECKING

from server.reconcile.keeper import Hooks, Keeper
from server.reconcile.starts import Starts
from server.states import Seen, Wanted

if TYPE_CHECKING:
    from server.engines.base import Engine, Replica
    from server.records import Deployment, DeploymentKey
    from server.store.state import Store


_POLL_SECONDS = 0.05


class Reconciler:
    """The keepers of all deployments."""

    def __init__(self, store: Store, engine: Engine, hooks: Hooks) -> None:
        self._store = store
        self._engine = engine
        self._hooks = hooks
        self._starts = Starts(2 * (os.cpu_count() or 1))
        self._keepers: dict[DeploymentKey, Keeper] = {}
        self._tasks: dict[DeploymentKey, asyncio.Task[None]] = {}
        self._closing = False

    def open(self) -> None:
        """Start again everything that is wanted."""
        for key in self._store.deployments:
            self.poke(key)

    async def close(self) -> None:
        """Stop deciding; the engine ends the replicas."""
        self._closing = True
        keepers = list(self._keepers.values())
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(keeper.close() for keeper in keepers))

    def poke(self, key: DeploymentKey) -> None:
        """Look at a deployment now."""
        keeper = self._keepers.get(key)
        if keeper is not None:
            keeper.poke()
            return
        self._keepers[key] = keeper = Keeper(
            key, self._store, self._engine, self._hooks, self._starts
        )
        # A context of its own: whoever asked first is not to stand in its log lines for good.
        task = asyncio.create_task(keeper.run(), context=Context())
        self._tasks[key] = task
        task.add_done_callback(lambda _task: self._forget(key))

    def _forget(self, key: DeploymentKey) -> None:
        self._keepers.pop(key, None)
        self._tasks.pop(key, None)
        if key in self._store.deployments and not self._closing:
            self.poke(key)

    async def gone(self, key: DeploymentKey) -> None:
        """Wait until a deleted deployment has been taken down."""
        task = self._tasks.get(key)
        if task is not None:
            self._keepers[key].poke()
            await asyncio.wait([task])

    async def stopped(self, key: DeploymentKey) -> None:
        """Wait until a deployment that is wanted down has no replica any more."""
        self.poke(key)
        while (made := self._store.deployments.get(key)) is not None:
            seen = self.seen(made)
            if made.wanted is Wanted.UP or (seen.serving, seen.candidate) == (None, None):
                return
            await asyncio.sleep(_POLL_SECONDS)

    def seen(self, made: Deployment) -> Seen:
        """Return what is seen of a deployment."""
        keeper = self._keepers.get(made.key)
        if keeper is None:
            return Seen(served=made.serving_version, failed=made.failed_version)
        return keeper.seen(made)

    def replicas(self, key: DeploymentKey) -> list[Replica]:
        """Return the replicas that take a deployment's traffic now."""
        keeper = self._keepers.get(key)
        return [] if keeper is None else keeper.replicas
