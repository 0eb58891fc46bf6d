"""Everything durable, mirrored in memory: reads cost no I/O, writes are on the disk first."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from sqlalchemy import delete, insert, select

from server.errors import ConflictError, NotFoundError
from server.records import (
    SERVICE,
    Deployment,
    DeploymentKey,
    Lease,
    ObjectiveOverride,
    Preparation,
    Run,
    acting,
    now,
)
from server.states import Phase, Wanted
from server.store import rows, statements, tables, timeline
from server.store.database import Turn
from server.store.events import EventLog
from server.store.reserve import surely
from server.store.statements import SEEN, WANTED, with_half

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from server.records import Event
    from server.store.database import Database
    from server.store.reserve import Reserve


class Store:
    """Runs, preparations, leases, deployments and objectives.

    One service owns a data folder, so memory is as true as the database once a transaction
    was committed; every change is one short transaction, made visible after its commit. What it
    means stands in ``events``, written in the same transaction.
    """

    def __init__(self, database: Database, reserve: Reserve | None = None) -> None:
        self._database = database
        self._reserve = reserve
        self._writing = Turn()
        self.events = EventLog(database)
        self._deciding: WeakValueDictionary[str | DeploymentKey, asyncio.Lock] = (
            WeakValueDictionary()
        )
        self.runs: dict[str, Run] = {}
        # Goes up with every run that comes or goes.
        self.revision = 0
        self.preparations: dict[str, Preparation] = {}
        self.leases: dict[str, Lease] = {}
        self.deployments: dict[DeploymentKey, Deployment] = {}
        self.objectives: dict[str, dict[str, ObjectiveOverride]] = {}
        self._by_owner: dict[str, dict[str, Run]] = {}
        self._by_run: dict[str, set[DeploymentKey]] = {}
        self._by_model: dict[str, set[DeploymentKey]] = {}

    async def open(self) -> None:
        """Read everything once."""
        async with self._database.read() as connection:
            for row in (await connection.execute(select(tables.runs))).mappings():
                self._keep_run(rows.run_record(dict(row)))
            for row in (await connection.execute(select(tables.preparations))).mappings():
                made = rows.preparation_record(dict(row))
                self.preparations[made.run_id] = made
            for row in (await connection.execute(select(tables.leases))).mappings():
                lease = rows.lease_record(dict(row))
                self.leases[lease.gpu_id] = lease
            for row in (await connection.execute(select(tables.deployments))).mappings():
                self._keep_deployment(rows.deployment_record(dict(row)))
            for row in (await connection.execute(select(tables.objectives))).mappings():
                run_id, environment, promised = rows.objective_record(dict(row))
                self.objectives.setdefault(run_id, {})[environment] = promised
            await self.events.open(connection)

    def _keep_run(self, run: Run) -> None:
        self.revision += 1
        self.runs[run.run_id] = run
        self._by_owner.setdefault(run.owner, {})[run.run_id] = run

    def _keep_deployment(self, made: Deployment) -> None:
        self.deployments[made.key] = made
        self._by_model.setdefault(made.key.model, set()).add(made.key)
        for run_id in {made.run_id, made.serving_run_id} - {None}:
            self._by_run.setdefault(str(run_id), set()).add(made.key)

    def deciding(self, subject: str | DeploymentKey) -> asyncio.Lock:
        """Return the lock of whoever decides about a run or a deployment by what it finds here.

        Where both are needed, the run's is taken first.
        """
        return self._deciding.setdefault(subject, asyncio.Lock())

    def run_of(self, run_id: str, owner: str | None) -> Run:
        """Return the owner's run.

        Raises:
            NotFoundError: it is unknown or somebody else's; both read the same.
        """
        run = self.runs.get(run_id)
        if run is None or run.owner != owner:
            raise NotFoundError("run_unknown")
        return run

    def runs_of(self, owner: str | None) -> list[Run]:
        """Return the owner's runs, newest first."""
        return list(reversed(self._by_owner.get(owner or "", {}).values()))

    def digests(self, *, but: str = "") -> Collection[str]:
        """Return the digests of all artifacts that a run refers to, some other run than ``but``."""
        return {run.digest for run in self.runs.values() if run.run_id != but}

    def deployments_of(self, run_id: str) -> list[Deployment]:
        """Return the deployments that want the run or are served by it."""
        keys = self._by_run.get(run_id, ())
        found = (self.deployments[key] for key in keys if key in self.deployments)
        return [made for made in found if run_id in (made.run_id, made.serving_run_id)]

    def deployments_called(self, name: str) -> list[Deployment]:
        """Return the deployments that answer to a run's id or a model's name.

        While there is a run of that id, to its owner's only, whatever others call their models.
        """
        keys = self._by_run.get(name) or self._by_model.get(name) or ()
        run = self.runs.get(name)
        return [
            self.deployments[key]
            for key in keys
            if key in self.deployments and (run is None or key.owner == run.owner)
        ]

    def lease_of(self, run_id: str) -> Lease | None:
        """Return the run's lease."""
        return next((held for held in self.leases.values() if held.run_id == run_id), None)

    async def add_run(self, run: Run) -> None:
        """Keep a new run."""
        told = [timeline.of_upload(run, acting.get())]
        async with self._writing:
            async with self._database.write() as connection:
                await connection.execute(insert(tables.runs).values(rows.run_row(run)))
                written = await self.events.write(connection, told, {run.run_id})
            self._keep_run(run)
            self.events.committed(written)

    async def tell(self, events: Sequence[Event]) -> None:
        """Keep what happened to runs without any change of what is kept of them.

        Raises:
            StorageFullError, UnavailableError: it cannot be kept now.
        """
        async with self._writing:
            async with self._database.write() as connection:
                written = await self.events.write(connection, events, self.runs)
            self.events.committed(written)

    async def settle(self) -> None:
        """Make sure that nothing which could not be kept will prove to have been kept after all.

        Raises:
            StorageFullError, UnavailableError: the database cannot be written now either.
        """
        async with self._writing:
            await self._database.settle()

    async def delete_run(self, run_id: str, *, instead: Sequence[Deployment] = ()) -> None:
        """Forget a run, its preparation, its lease and the deployments that want it.

        ``instead`` is what is wanted of those that are not to go with it.

        Raises:
            NotFoundError: somebody else was faster.
        """
        await surely(self._reserve, lambda: self._delete_run(run_id, instead))

    async def _delete_run(self, run_id: str, instead: Sequence[Deployment]) -> None:
        async with self._writing:
            self._refuse_unknown(run_id)
            kept = [
                with_half(self.deployments[made.key], made, WANTED)
                for made in instead
                if made.key in self.deployments and made.run_id in self.runs
            ]
            doomed = [made.key for made in self.deployments_of(run_id) if made.run_id == run_id]
            doomed = [key for key in doomed if key not in {made.key for made in kept}]
            others = self.runs.keys() - {run_id}
            async with self._database.write() as connection:
                told: list[Event] = []
                for made in kept:
                    before = await statements.kept_deployment(connection, made.key)
                    told += timeline.of_want(before, made, acting.get())
                    await statements.write_deployment(connection, made, WANTED, new=False)
                for key in doomed:
                    await statements.delete_deployment(connection, key)
                await connection.execute(delete(tables.runs).where(tables.runs.c.run_id == run_id))
                written = await self.events.write(connection, told, others)
            for made in kept:
                self._keep_deployment(with_half(self.deployments[made.key], made, WANTED))
            self.revision += 1
            run = self.runs.pop(run_id)
            self._by_owner[run.owner].pop(run_id, None)
            self.preparations.pop(run_id, None)
            self.objectives.pop(run_id, None)
            self._forget_lease(run_id)
            for key in doomed:
                self.deployments.pop(key, None)
                self._by_model[key.model].discard(key)
            self._by_run.pop(run_id, None)
            self.events.forget(run_id)
            self.events.committed(written)

    def preparation(self, run_id: str) -> Preparation:
        """Return the run's preparation; one that is still to be done if none was started."""
        return self.preparations.get(run_id) or Preparation(run_id=run_id)

    async def save_preparation(
        self,
        made: Preparation,
        *,
        lease: str | None = None,
        release: bool = False,
        while_shown: bool = False,
    ) -> None:
        """Keep a preparation; take or end the run's lease in the same transaction.

        ``while_shown``: only if it is still the one that polls see.

        Raises:
            ConflictError: another run holds the GPU ``lease``; nothing was changed.
        """
        # That it failed has to be known, and its lease to end, on a full disk too.
        reserve = self._reserve if made.phase is Phase.FAILED else None
        await surely(
            reserve,
            lambda: self._save_preparation(made, lease, release=release, while_shown=while_shown),
        )

    async def _save_preparation(
        self, made: Preparation, lease: str | None, *, release: bool, while_shown: bool
    ) -> None:
        taken = statements.lease_for(lease, made.run_id, made.updated_at)
        async with self._writing:
            self._refuse_unknown(made.run_id)
            if while_shown and self.preparations.get(made.run_id) is not made:
                return
            if lease is not None:
                self._refuse_taken(lease, made.run_id)
            async with self._database.write() as connection:
                # What polls see may be ahead of what is kept, and only that was told.
                before = await statements.kept_preparation(connection, made.run_id)
                is_wish = before is None or made.attempt != before.attempt
                by = acting.get() if is_wish else SERVICE
                told = timeline.of_preparation(before, made, by)
                if release or lease is not None:
                    held = await statements.write_lease(connection, made.run_id, taken)
                    told += timeline.of_lease(made.run_id, *held, by)
                await statements.write_preparation(connection, made)
                written = await self.events.write(connection, told, self.runs)
            self.preparations[made.run_id] = made
            if release or lease is not None:
                self._keep_lease(made.run_id, taken)
            self.events.committed(written)

    def show_progress(self, made: Preparation) -> None:
        """Let polls see a moving message; it is worth no transaction."""
        if made.run_id in self.runs:
            self.preparations[made.run_id] = made

    async def save_objectives(self, run_id: str, promised: Mapping[str, ObjectiveOverride]) -> None:
        """Keep what a run promises, by environment, in place of what it did.

        Raises:
            NotFoundError: the run was deleted meanwhile.
        """
        table = tables.objectives
        values = [rows.objective_row(run_id, name, made) for name, made in promised.items()]
        async with self._writing:
            self._refuse_unknown(run_id)
            async with self._database.write() as connection:
                await connection.execute(delete(table).where(table.c.run_id == run_id))
                if values:
                    await connection.execute(insert(table), values)
            self.objectives[run_id] = dict(promised)

    async def release_lease(self, run_id: str) -> None:
        """End the run's lease; having none is success."""
        await surely(self._reserve, lambda: self._release_lease(run_id))

    async def _release_lease(self, run_id: str) -> None:
        async with self._writing:
            if self.lease_of(run_id) is None:
                return
            async with self._database.write() as connection:
                held = await statements.write_lease(connection, run_id, None)
                told = timeline.of_lease(run_id, *held, SERVICE)
                written = await self.events.write(connection, told, self.runs)
            self._keep_lease(run_id, None)
            self.events.committed(written)

    def _refuse_unknown(self, run_id: str) -> None:
        """Raise NotFoundError if the run was deleted while somebody waited for the lock."""
        if run_id not in self.runs:
            raise NotFoundError("run_unknown")

    def _refuse_taken(self, gpu_id: str, run_id: str) -> None:
        holder = self.leases.get(gpu_id)
        if holder is not None and holder.run_id != run_id:
            raise ConflictError("gpu_taken", gpu=gpu_id)

    def _keep_lease(self, run_id: str, lease: Lease | None) -> None:
        self._forget_lease(run_id)
        if lease is not None:
            self.leases[lease.gpu_id] = lease

    def _forget_lease(self, run_id: str) -> None:
        for gpu_id in [gpu for gpu, held in self.leases.items() if held.run_id == run_id]:
            del self.leases[gpu_id]

    async def want(self, made: Deployment, *, lease: str | None = None) -> None:
        """Keep what is wanted of a deployment; what was seen of it stays as it is.

        The run takes the GPU ``lease`` in the same transaction, also if it has it already: a
        lease that is younger than its run's preparation belongs to a deployment. To stop one
        the reserve is used on a full disk.

        Raises:
            ConflictError: another run holds that GPU; nothing was changed.
        """
        reserve = self._reserve if made.wanted is Wanted.STOPPED else None
        await surely(reserve, lambda: self._want(made, lease))

    async def _want(self, made: Deployment, lease: str | None) -> None:
        taken = statements.lease_for(lease, made.run_id, made.wanted_at)
        async with self._writing:
            self._refuse_unknown(made.run_id)
            if lease is not None:
                self._refuse_taken(lease, made.run_id)
            known = self.deployments.get(made.key)
            kept = made if known is None else with_half(known, made, WANTED)
            async with self._database.write() as connection:
                before = await statements.kept_deployment(connection, made.key)
                told = timeline.of_want(before, kept, acting.get())
                if taken is not None:
                    held = await statements.write_lease(connection, made.run_id, taken)
                    told += timeline.of_lease(made.run_id, *held, acting.get())
                await statements.write_deployment(connection, kept, WANTED, new=known is None)
                written = await self.events.write(connection, told, self.runs)
            self._keep_deployment(with_half(self.deployments.get(made.key, kept), made, WANTED))
            if taken is not None:
                self._keep_lease(made.run_id, taken)
            self.events.committed(written)

    async def saw(self, made: Deployment, happened: Sequence[Event] = ()) -> None:
        """Keep what was seen of a deployment; what is wanted of it stays as it is.

        ``happened`` is what has led to it, and cannot be told from the record.
        """
        await surely(self._reserve, lambda: self._saw(made, happened))

    async def _saw(self, made: Deployment, happened: Sequence[Event]) -> None:
        async with self._writing:
            kept = self._seen(made)
            if kept is None:
                return
            async with self._database.write() as connection:
                before = await statements.kept_deployment(connection, made.key)
                told = [] if before is None else timeline.of_sight(before, kept, made)
                await statements.write_deployment(connection, kept, SEEN, new=False)
                written = await self.events.write(connection, [*happened, *told], self.runs)
            self._keep_deployment(kept)
            self.events.committed(written)

    async def tell_stop(self, made: Deployment) -> None:
        """Tell that a deployment has stopped, if its stop was wanted and nothing was told since."""
        async with self._writing:
            await self.events.tell_stop(made, self.runs)

    def show_seen(self, made: Deployment) -> None:
        """Let everybody see what was seen, though it cannot be kept now."""
        kept = self._seen(made)
        if kept is not None:
            self._keep_deployment(kept)

    def _seen(self, made: Deployment) -> Deployment | None:
        known = self.deployments.get(made.key)
        if known is None:
            return None
        return with_half(known, replace(made, seen_at=now(known.seen_at)), SEEN)
