"""Gives every deployment its keeper, and ends them with the service."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import TYPE_CHECKING

from server.cores import usable_cores
from server.errors import PersephoneError
from server.reconcile.keeper import Keeper
from server.reconcile.starts import Starts
from server.states import Seen
from server.store import timeline

if TYPE_CHECKING:
    from server.engines.base import Engine, Replica
    from server.reconcile.hooks import Hooks
    from server.records import Deployment, DeploymentKey
    from server.store.state import Store

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05


class Reconciler:
    """The keepers of all deployments."""

    def __init__(self, store: Store, engine: Engine, hooks: Hooks) -> None:
        self._store = store
        self._engine = engine
        self._hooks = hooks
        self._starts = Starts(2 * usable_cores())
        self._keepers: dict[DeploymentKey, Keeper] = {}
        self._tasks: dict[DeploymentKey, asyncio.Task[None]] = {}
        self._closing = False

    async def tell_restart(self) -> None:
        """Let the runs that are to be up know that the service began anew; a full disk keeps it back."""
        events = timeline.of_restart(self._store.deployments.values())
        try:
            if events:
                await self._store.tell(events)
        except PersephoneError as error:
            logger.warning("that the service was restarted cannot be kept: %s", error)

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

    def is_going(self, key: DeploymentKey) -> bool:
        """Whether a deleted deployment is still being taken down."""
        return key in self._tasks and key not in self._store.deployments

    async def gone(self, key: DeploymentKey) -> None:
        """Wait until a deleted deployment has been taken down."""
        if self.is_going(key):
            self._keepers[key].poke()
            await asyncio.wait([self._tasks[key]])

    async def left(self, key: DeploymentKey, run_id: str) -> None:
        """Wait until nothing of a deleted run is left in a deployment that it shared."""
        self.poke(key)
        while (keeper := self._keepers.get(key)) is not None and keeper.holds(run_id):
            keeper.poke()
            await asyncio.sleep(_POLL_SECONDS)

    async def renew(self, owner: str, model: str) -> None:
        """Let the replicas of an owner's model know that other tokens are good for it."""
        keys = [key for key in self._store.deployments if (key.owner, key.model) == (owner, model)]
        await asyncio.gather(*(self._engine.renew(key) for key in keys))

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
