"""The statements of the store: records written and read within a transaction of somebody else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from server.records import Lease, now
from server.store import rows, tables

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from server.records import Deployment, DeploymentKey, Preparation

# Two facts with two writers: neither half is ever written by the other's.
WANTED = ("wanted", "version", "run_id", "replicas", "wanted_at")
SEEN = ("port", "serving_version", "serving_run_id", "failed_version", "message", "seen_at")


def with_half(known: Deployment, made: Deployment, half: tuple[str, ...]) -> Deployment:
    """Return a deployment with one half, ``WANTED`` or ``SEEN``, of another record of it."""
    return replace(known, **{name: getattr(made, name) for name in half})


def _belongs(key: DeploymentKey) -> Any:
    columns = tables.deployments.c
    return (
        (columns.owner == key.owner)
        & (columns.model == key.model)
        & (columns.environment == key.environment)
    )


async def kept_preparation(connection: AsyncConnection, run_id: str) -> Preparation | None:
    """Return how far a preparation has come, without what it has found."""
    columns = tables.preparations.c
    # Its passport may be megabytes.
    told = (columns.run_id, columns.attempt, columns.resumed, columns.phase, columns.steps)
    found = await connection.execute(select(*told).where(columns.run_id == run_id))
    row = found.mappings().first()
    return None if row is None else rows.preparation_record(dict(row))


async def write_preparation(connection: AsyncConnection, made: Preparation) -> None:
    """Write a preparation, in place of the one before."""
    row, table = rows.preparation_row(made), tables.preparations
    changed = await connection.execute(
        update(table).where(table.c.run_id == made.run_id).values(row)
    )
    if changed.rowcount == 0:
        await connection.execute(insert(table).values(row))


def lease_for(gpu_id: str | None, run_id: str, at: datetime | None) -> Lease | None:
    """Return a run's lease on a GPU, if it is to have one."""
    return None if gpu_id is None else Lease(gpu_id=gpu_id, run_id=run_id, taken_at=at or now())


async def write_lease(
    connection: AsyncConnection, run_id: str, lease: Lease | None
) -> tuple[str | None, str | None]:
    """Write a run's lease, or that it has none; return the GPUs that it held before and holds now."""
    table = tables.leases
    before = await connection.scalar(select(table.c.gpu_id).where(table.c.run_id == run_id))
    await connection.execute(delete(table).where(table.c.run_id == run_id))
    if lease is not None:
        await connection.execute(insert(table).values(rows.lease_row(lease)))
    return before, None if lease is None else lease.gpu_id


async def kept_deployment(connection: AsyncConnection, key: DeploymentKey) -> Deployment | None:
    """Return a deployment."""
    found = await connection.execute(select(tables.deployments).where(_belongs(key)))
    row = found.mappings().first()
    return None if row is None else rows.deployment_record(dict(row))


async def write_deployment(
    connection: AsyncConnection, made: Deployment, half: tuple[str, ...], *, new: bool
) -> None:
    """Write a deployment that is ``new``, or half of the columns of one that is there."""
    row = rows.deployment_row(made)
    if new:
        await connection.execute(insert(tables.deployments).values(row))
        return
    await connection.execute(
        update(tables.deployments)
        .where(_belongs(made.key))
        .values({name: row[name] for name in half})
    )


async def delete_deployment(connection: AsyncConnection, key: DeploymentKey) -> None:
    """Delete a deployment."""
    await connection.execute(delete(tables.deployments).where(_belongs(key)))
