"""Runs: list them, and take one away with everything it had."""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import TYPE_CHECKING

from server.records import now
from server.states import Phase, Wanted

if TYPE_CHECKING:
    from pathlib import Path

    from server.pipeline.monitor import Monitor
    from server.pipeline.prepare import Prepare
    from server.reconcile.reconciler import Reconciler
    from server.records import Run
    from server.settings import Settings
    from server.store.blobs import Blobs
    from server.store.state import Store

logger = logging.getLogger(__name__)

_PAGE = 100


class Runs:
    """The runs of one owner at a time, and the leases that nobody needs any more."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: Blobs,
        models: Path,
        prepare: Prepare,
        reconciler: Reconciler,
        monitor: Monitor,
    ) -> None:
        self._settings = settings
        self._store = store
        self._blobs = blobs
        self._models = models
        self._prepare = prepare
        self._reconciler = reconciler
        self._monitor = monitor

    def page(self, owner: str | None, after: str | None) -> tuple[list[Run], str | None]:
        """Return up to 100 runs, newest first, older than ``after``, and where to go on."""
        found = self._store.runs_of(owner)
        if after is not None:
            ids = [run.run_id for run in found]
            found = found[ids.index(after) + 1 :] if after in ids else []
        page = found[:_PAGE]
        return page, page[-1].run_id if len(found) > _PAGE else None

    async def delete(self, run: Run) -> None:
        """Take a run away: its processes, its deployments, its lease, its bytes."""
        await self._prepare.cancel(run.run_id)
        deployments = self._store.deployments_of(run.run_id)
        keys = [made.key for made in deployments if made.run_id == run.run_id]
        await self._store.delete_run(run.run_id)
        await asyncio.gather(*(self._reconciler.gone(key) for key in keys))
        self._monitor.forget(run.run_id)
        await asyncio.to_thread(shutil.rmtree, self._models / run.run_id, ignore_errors=True)
        async with self._blobs.referring:
            if run.digest not in self._store.digests():
                await self._blobs.delete(run.digest)

    async def release_if_unused(self, run_id: str) -> None:
        """End the lease of a run that is deployed nowhere any more."""
        made = self._store.preparation(run_id)
        if made.phase is Phase.SUCCEEDED and not self._is_needed(run_id):
            await self._store.release_lease(run_id)

    def _is_needed(self, run_id: str) -> bool:
        return any(
            made.wanted is Wanted.UP or made.serving_run_id == run_id
            for made in self._store.deployments_of(run_id)
        )

    async def expire_leases(self) -> None:
        """End the leases of runs that were prepared long ago and never deployed."""
        for lease in list(self._store.leases.values()):
            made = self._store.preparation(lease.run_id)
            if made.phase is Phase.RUNNING or self._is_needed(lease.run_id):
                continue
            since = max(lease.taken_at, made.updated_at or lease.taken_at)
            if (now() - since).total_seconds() > self._settings.lease_seconds:
                logger.info("run %s was not deployed and loses its GPU", lease.run_id)
                await self._store.release_lease(lease.run_id)
