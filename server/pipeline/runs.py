"""Runs: list them, and take one away with everything it had."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from server.errors import NotFoundError, PersephoneError, StorageFullError
from server.faults import Point, Reached, nothing
from server.records import now
from server.states import Wanted
from server.store.folders import remove_folder

if TYPE_CHECKING:
    from pathlib import Path

    from server.pipeline.monitor import Monitor
    from server.pipeline.prepare import Prepare
    from server.pipeline.usage import Usage
    from server.reconcile.reconciler import Reconciler
    from server.records import Deployment, Run
    from server.store.blobs import Blobs
    from server.store.run_logs import RunLogs
    from server.store.state import Store

logger = logging.getLogger(__name__)

_PAGE = 100


class Runs:
    """The runs of one owner at a time."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        models: Path,
        logs: RunLogs,
        prepare: Prepare,
        reconciler: Reconciler,
        monitor: Monitor,
        usage: Usage,
        *,
        reached: Reached = nothing,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._models = models
        self._logs = logs
        self._prepare = prepare
        self._reconciler = reconciler
        self._monitor = monitor
        self._usage = usage
        # Deleted, but for their bytes.
        self._left: set[Run] = set()
        # Of these only the bytes are deleted: there was no room to say that they are gone.
        self._hollow: set[Run] = set()
        self._reached = reached

    def page(self, owner: str | None, after: str | None) -> tuple[list[Run], str | None]:
        """Return up to 100 runs, newest first, older than ``after``, and where to go on."""
        found = self._store.runs_of(owner)
        if after is not None:
            ids = [run.run_id for run in found]
            found = found[ids.index(after) + 1 :] if after in ids else []
        page = found[:_PAGE]
        return page, page[-1].run_id if len(found) > _PAGE else None

    async def delete(self, run: Run) -> None:
        """Take a run away: its processes, its deployments, its lease, its bytes.

        What cannot be removed from the disk now is removed later.

        Raises:
            UnavailableError: it cannot be forgotten now and stays as it was.
            StorageFullError: nor can it be now, but its bytes are gone, and it is once there is room.
            NotFoundError: somebody else was faster.
        """
        run_id = run.run_id
        async with AsyncExitStack() as deciding:
            await deciding.enter_async_context(self._store.deciding(run_id))
            keys = [made.key for made in self._store.deployments_of(run_id)]
            # In one order, as another run of the model may be deleted at the same time.
            for key in sorted(keys, key=attrgetter("environment")):
                await deciding.enter_async_context(self._store.deciding(key))
            await self._prepare.cancel(run_id)
            self._reached(Point.DELETE_CANCELLED)
            deployments = self._store.deployments_of(run_id)
            instead = [other for made in deployments if (other := self._instead(made, run_id))]
            try:
                await self._forget(run, instead)
            except PersephoneError:
                self._prepare.resume(run)
                raise
        self._hollow.discard(run)
        self._usage.deleted(run)
        self._reached(Point.DELETE_FORGOTTEN)
        kept = {made.key for made in instead}
        gone = {made.key for made in deployments if made.run_id == run_id} - kept
        try:
            await asyncio.gather(
                *(self._reconciler.gone(key) for key in gone),
                *(self._reconciler.left(key, run_id) for key in {*keys} - gone),
            )
        finally:
            # Whatever happens to its processes.
            self._left.add(run)
        self._reached(Point.DELETE_DOWN)
        self._monitor.forget(run_id)
        await self.sweep()

    async def sweep(self) -> None:
        """Bring deletions to their end that a failing or full disk has held up so far."""
        for run in list(self._hollow):
            try:
                await self.delete(run)
            except NotFoundError:
                self._hollow.discard(run)
            except PersephoneError as error:
                logger.warning("run %s is not deleted yet: %s", run.run_id, error)
        for run in list(self._left):
            try:
                await self._remove_files(run)
            except OSError as error:
                logger.warning("files of the deleted run %s stay for now: %s", run.run_id, error)
            else:
                self._left.discard(run)

    async def _forget(self, run: Run, instead: list[Deployment]) -> None:
        try:
            await self._store.delete_run(run.run_id, instead=instead)
        except StorageFullError:
            # Even the reserve is used up: its own bytes make the room to say that it is gone.
            with suppress(OSError):
                await self._remove_files(run)
            self._hollow.add(run)
            await self._store.delete_run(run.run_id, instead=instead)

    async def _remove_files(self, run: Run) -> None:
        """Remove all that can be removed; OSError if something is left."""
        failures: list[OSError] = []
        for remove in (self._remove_folder, self._remove_log, self._remove_blob):
            try:
                await remove(run)
            except OSError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def _remove_folder(self, run: Run) -> None:
        await asyncio.to_thread(remove_folder, self._models / run.run_id)

    async def _remove_log(self, run: Run) -> None:
        await self._logs.forget(run.run_id)
        self._reached(Point.DELETE_FILES_GONE)

    async def _remove_blob(self, run: Run) -> None:
        async with self._blobs.referring:
            if run.digest not in self._store.digests(but=run.run_id):
                await self._blobs.delete(run.digest)
        self._reached(Point.DELETE_BLOB_GONE)

    def _instead(self, made: Deployment, run_id: str) -> Deployment | None:
        """Return what is wanted of a deployment without a run that it shares with another one."""
        other = made.serving_run_id if made.run_id == run_id else made.run_id
        if other is None or other == run_id or made.wanted is Wanted.STOPPED:
            return None
        if made.run_id == run_id:
            # The run that still serves becomes the wanted one again.
            at = now(made.wanted_at, made.seen_at)
            return replace(made, run_id=other, version=made.version + 1, wanted_at=at)
        if self._reconciler.seen(made).failed == made.version:
            # It only stood in for a version that failed: nothing is left to serve.
            return replace(made, wanted=Wanted.STOPPED)
        return None
