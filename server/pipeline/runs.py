"""Runs: list them, and take one away with everything it had."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from server.records import now
from server.states import Wanted

if TYPE_CHECKING:
    from pathlib import Path

    from server.pipeline.monitor import Monitor
    from server.pipeline.prepare import Prepare
    from server.reconcile.reconciler import Reconciler
    from server.records import Deployment, Run
    from server.store.blobs import Blobs
    from server.store.state import Store

_PAGE = 100


class Runs:
    """The runs of one owner at a time."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        models: Path,
        prepare: Prepare,
        reconciler: Reconciler,
        monitor: Monitor,
    ) -> None:
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
        for made in self._store.deployments_of(run.run_id):
            await self._leave(made, run.run_id)
        deployments = self._store.deployments_of(run.run_id)
        keys = [made.key for made in deployments if made.run_id == run.run_id]
        await self._store.delete_run(run.run_id)
        await asyncio.gather(*(self._reconciler.gone(key) for key in keys))
        self._monitor.forget(run.run_id)
        await asyncio.to_thread(shutil.rmtree, self._models / run.run_id, ignore_errors=True)
        async with self._blobs.referring:
            if run.digest not in self._store.digests():
                await self._blobs.delete(run.digest)

    async def _leave(self, made: Deployment, run_id: str) -> None:
        """Take a run out of a deployment that it shares with another run of its model."""
        other = made.serving_run_id if made.run_id == run_id else made.run_id
        if other is None or other == run_id or made.wanted is Wanted.STOPPED:
            return
        if made.run_id == run_id:
            # The run that still serves becomes the wanted one again.
            again = replace(made, run_id=other, version=made.version + 1, wanted_at=now())
            await self._store.want(again)
            self._reconciler.poke(made.key)
        elif self._reconciler.seen(made).failed == made.version:
            # It only stood in for a version that failed: nothing is left to serve.
            await self._store.want(replace(made, wanted=Wanted.STOPPED))
            await self._reconciler.stopped(made.key)
