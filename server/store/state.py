"""Everything durable, mirrored in memory: reads cost no I/O, writes are on the disk first."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from server.errors import ConflictError, NotFoundError
from server.records import Deployment, DeploymentKey, Lease, Preparation, Run, now
from server.store import rows, tables

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.ext.asyncio import AsyncConnection

    from server.store.database import Database


# Two facts with two writers: neither half is ever written by the other's.
WANTED = ("wanted", "version", "run_id", "replicas", "wanted_at")
SEEN = ("port", "serving_version", "serving_run_id", "failed_version", "message", "seen_at")


def _with(known: Deployment, made: Deployment, half: tuple[str, ...]) -> Deployment:
    return replace(known, **{name: getattr(made, name) for name in half})


def _belongs(key: DeploymentKey) -> Any:
    columns = tables.deployments.c
    return (
        (columns.owner == key.owner)
        & (columns.model == key.model)
        & (columns.environment == key.environment)
    )


class Store:
    """Runs, preparations, leases and deployments.

    One service owns a data folder, so memory is as true as the database once a transaction
    was committed; every change is one short transaction, made visible after its commit.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writing = asyncio.Lock()
        self.runs: dict[str, Run] = {}
        self.preparations: dict[str, Preparation] = {}
        self.leases: dict[str, Lease] = {}
        self.deployments: dict[DeploymentKey, Deployment] = {}
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

    def _keep_run(self, run: Run) -> None:
        self.runs[run.run_id] = run
        self._by_owner.setdefault(run.owner, {})[run.run_id] = run

    def _keep_deployment(self, made: Deployment) -> None:
        self.deployments[made.key] = made
        self._by_model.setdefault(made.key.model, set()).add(made.key)
        for run_id in {made.run_id, made.serving_run_id} - {None}:
            self._by_run.setdefault(str(run_id), set()).add(made.key)

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

    def digests(self) -> Collection[str]:
        """Return the digests of all artifacts that a run refers to."""
        return {run.digest for run in self.runs.values()}

    def deployments_of(self, run_id: str) -> list[Deployment]:
        """Return the deployments that want the run or are served by it."""
        keys = self._by_run.get(run_id, ())
        found = (self.deployments[key] for key in keys if key in self.deployments)
        return [made for made in found if run_id in (made.run_id, made.serving_run_id)]

    def deployments_called(self, name: str) -> list[Deployment]:
        """Return the deployments that answer to a run's id or a model's name."""
        keys = self._by_run.get(name) or self._by_model.get(name) or ()
        return [self.deployments[key] for key in keys if key in self.deployments]

    def lease_of(self, run_id: str) -> Lease | None:
        """Return the run's lease."""
        return next((held for held in self.leases.values() if held.run_id == run_id), None)

    async def add_run(self, run: Run) -> None:
        """Keep a new run."""
        async with self._writing:
            async with self._database.write() as connection:
                await connection.execute(insert(tables.runs).values(rows.run_row(run)))
            self._keep_run(run)

    async def delete_run(self, run_id: str) -> None:
        """Forget a run, its preparation, its lease and the deployments that want it.

        Raises:
            NotFoundError: somebody else was faster.
        """
        async with self._writing:
            self._refuse_unknown(run_id)
            doomed = [made.key for made in self.deployments_of(run_id) if made.run_id == run_id]
            async with self._database.write() as connection:
                for key in doomed:
                    await connection.execute(delete(tables.deployments).where(_belongs(key)))
                await connection.execute(delete(tables.runs).where(tables.runs.c.run_id == run_id))
            run = self.runs.pop(run_id)
            self._by_owner[run.owner].pop(run_id, None)
            self.preparations.pop(run_id, None)
            self._forget_lease(run_id)
            for key in doomed:
                self.deployments.pop(key, None)
                self._by_model[key.model].discard(key)
            self._by_run.pop(run_id, None)

    def preparation(self, run_id: str) -> Preparation:
        """Return the run's preparation; one that is still to be done if none was started."""
        return self.preparations.get(run_id) or Preparation(run_id=run_id)

    async def save_preparation(
        self, made: Preparation, *, lease: str | None = None, release: bool = False
    ) -> None:
        """Keep a preparation; take or end the run's lease in the same transaction.

        Raises:
            ConflictError: another run holds the GPU ``lease``; nothing was changed.
        """
        row = rows.preparation_row(made)
        table = tables.preparations
        async with self._writing:
            self._refuse_unknown(made.run_id)
            if lease is not None:
                self._refuse_taken(lease, made.run_id)
            async with self._database.write() as connection:
                if release or lease is not None:
                    await self._write_lease(connection, made.run_id, lease)
                changed = await connection.execute(
                    update(table).where(table.c.run_id == made.run_id).values(row)
                )
                if changed.rowcount == 0:
                    await connection.execute(insert(table).values(row))
            self.preparations[made.run_id] = made
            if release or lease is not None:
                self._keep_lease(made.run_id, lease)

    def show_progress(self, made: Preparation) -> None:
        """Let polls see a moving message; it is worth no transaction."""
        if made.run_id in self.runs:
            self.preparations[made.run_id] = made

    async def take_lease(self, gpu_id: str, run_id: str) -> None:
        """Take a GPU for a run again.

        Raises:
            ConflictError: another run holds it.
        """
        async with self._writing:
            self._refuse_unknown(run_id)
            self._refuse_taken(gpu_id, run_id)
            async with self._database.write() as connection:
                await self._write_lease(connection, run_id, gpu_id)
            self._keep_lease(run_id, gpu_id)

    async def release_lease(self, run_id: str) -> None:
        """End the run's lease; having none is success."""
        async with self._writing:
            if self.lease_of(run_id) is None:
                return
            async with self._database.write() as connection:
                await self._write_lease(connection, run_id, None)
            self._keep_lease(run_id, None)

    def _refuse_unknown(self, run_id: str) -> None:
        """Raise NotFoundError if the run was deleted while somebody waited for the lock."""
        if run_id not in self.runs:
            raise NotFoundError("run_unknown")

    def _refuse_taken(self, gpu_id: str, run_id: str) -> None:
        holder = self.leases.get(gpu_id)
        if holder is not None and holder.run_id != run_id:
            raise ConflictError("gpu_taken", gpu=gpu_id)

    async def _write_lease(
        self, connection: AsyncConnection, run_id: str, gpu_id: str | None
    ) -> None:
        table = tables.leases
        await connection.execute(delete(table).where(table.c.run_id == run_id))
        if gpu_id is not None:
            lease = Lease(gpu_id=gpu_id, run_id=run_id, taken_at=now())
            await connection.execute(insert(table).values(rows.lease_row(lease)))

    def _keep_lease(self, run_id: str, gpu_id: str | None) -> None:
        self._forget_lease(run_id)
        if gpu_id is not None:
            self.leases[gpu_id] = Lease(gpu_id=gpu_id, run_id=run_id, taken_at=now())

    def _forget_lease(self, run_id: str) -> None:
        for gpu_id in [gpu for gpu, held in self.leases.items() if held.run_id == run_id]:
            del self.leases[gpu_id]

    async def want(self, made: Deployment) -> None:
        """Keep what is wanted of a deployment; what was seen of it stays as it is."""
        async with self._writing:
            self._refuse_unknown(made.run_id)
            known = self.deployments.get(made.key)
            kept = made if known is None else _with(known, made, WANTED)
            async with self._database.write() as connection:
                await self._write_deployment(connection, kept, WANTED, new=known is None)
            self._keep_deployment(kept)

    async def saw(self, made: Deployment) -> None:
        """Keep what was seen of a deployment; what is wanted of it stays as it is."""
        async with self._writing:
            known = self.deployments.get(made.key)
            if known is None:
                return
            kept = _with(known, replace(made, seen_at=now()), SEEN)
            async with self._database.write() as connection:
                await self._write_deployment(connection, kept, SEEN, new=False)
            self._keep_deployment(kept)

    async def _write_deployment(
        self, connection: AsyncConnection, made: Deployment, half: tuple[str, ...], *, new: bool
    ) -> None:
        row = rows.deployment_row(made)
        if new:
            await connection.execute(insert(tables.deployments).values(row))
            return
        await connection.execute(
            update(tables.deployments)
            .where(_belongs(made.key))
            .values({name: row[name] for name in half})
        )
