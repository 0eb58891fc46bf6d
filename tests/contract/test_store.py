"""The durable state on a real SQLite file."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, select, update

from server.errors import ConflictError, NotFoundError, UnavailableError
from server.records import (
    Deployment,
    ObjectiveOverride,
    Preparation,
    Text,
    now,
)
from server.states import Phase, Wanted
from server.store import database as store_database
from server.store import tables
from server.store.database import Database
from server.store.state import Store
from server.store.statements import SEEN, WANTED
from tests.support.records import a_deployment, a_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy import Connection

# Its first row takes about 50 ms, and another one is left to read.
_SLOW = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)"
    " SELECT max(i) FROM n UNION ALL SELECT 2"
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = Database(url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def store(database: Database) -> Store:
    opened = Store(database)
    await opened.open()
    return opened


async def reopened(database: Database) -> Store:
    again = Store(database)
    await again.open()
    return again


async def test_eight_writers_lose_no_increment(database: Database) -> None:
    run = a_run()
    async with database.write() as connection:
        await connection.execute(
            insert(tables.runs).values(
                run_id=run.run_id,
                owner="me",
                model="m",
                file_name="f",
                size_bytes=0,
                digest="d",
                created_at="now",
            )
        )

    async def increment() -> None:
        for _ in range(10):
            async with database.write() as connection:
                row = await connection.execute(select(tables.runs.c.size_bytes))
                number = row.scalar_one()
                await connection.execute(update(tables.runs).values(size_bytes=number + 1))

    await asyncio.gather(*(increment() for _ in range(8)))
    async with database.read() as connection:
        row = await connection.execute(select(tables.runs.c.size_bytes))
        assert row.scalar_one() == 80


async def test_who_is_cancelled_in_the_middle_of_a_statement_leaves_no_lock(
    database: Database,
) -> None:
    async def read_slowly() -> None:
        async with database.write() as connection:
            await connection.exec_driver_sql(_SLOW)

    gc.disable()
    try:
        for turn in range(10):
            reading = asyncio.create_task(read_slowly())
            await asyncio.sleep(0.02 + turn * 0.002)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            async with database.write() as connection:
                await connection.exec_driver_sql("SELECT 1")
    finally:
        gc.enable()


async def test_a_connection_that_can_only_read_is_not_written_through(
    database: Database, url: str
) -> None:
    only = Database(url.replace("///", "///file:") + "?mode=ro&uri=true")
    async with only.read() as connection:
        await connection.execute(select(tables.runs))
    with pytest.raises(UnavailableError, match="database_unavailable"):
        async with only.write():
            pytest.fail("a change was begun that cannot be made")
    await only.close()


async def test_once_the_disk_is_healthy_changes_get_a_connection_that_can_write(
    database: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Database(url)
    with monkeypatch.context() as patch:
        patch.setattr(store_database, "_is_read_only", lambda _cursor: True)
        async with opened.read() as connection:
            await connection.execute(select(tables.runs))
    async with opened.write() as connection:
        await connection.execute(update(tables.runs).values(size_bytes=1))
    await opened.close()


async def test_sqlite_is_in_the_safe_mode(database: Database) -> None:
    async with database.read() as connection:
        for pragma, wanted in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            found = (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar_one()
            assert found == wanted


async def test_what_was_kept_is_read_back_the_same(database: Database, store: Store) -> None:
    run = a_run()
    await store.add_run(run)
    made = Preparation(
        run_id=run.run_id,
        attempt=2,
        phase=Phase.SUCCEEDED,
        device="GPU-1",
        passport={"kind": "onnx"},
        updated_at=now(),
    )
    await store.save_preparation(made, lease="GPU-1")
    await store.want(a_deployment(run))
    key = a_deployment(run).key
    await store.saw(replace(store.deployments[key], serving_version=1, message=Text(code="x")))
    again = await reopened(database)
    assert again.runs == store.runs
    assert again.preparations == store.preparations
    assert again.deployments == store.deployments
    assert again.leases["GPU-1"].run_id == run.run_id


async def test_a_gpu_is_leased_once(database: Database, store: Store) -> None:
    first, second = a_run("a" * 32), a_run("b" * 32)
    await store.add_run(first)
    await store.add_run(second)
    await store.save_preparation(Preparation(run_id=first.run_id), lease="GPU-1")
    taken = Preparation(run_id=second.run_id, phase=Phase.RUNNING)
    with pytest.raises(ConflictError, match="gpu_taken"):
        await store.save_preparation(taken, lease="GPU-1")
    assert (await reopened(database)).preparation(second.run_id).phase is Phase.PENDING


async def test_twenty_runs_ask_for_one_gpu_and_one_gets_it(store: Store) -> None:
    runs = [a_run(f"{number:032x}") for number in range(20)]
    for run in runs:
        await store.add_run(run)
    wanted = [store.want(a_deployment(run), lease="GPU-1") for run in runs]
    results = await asyncio.gather(*wanted, return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, ConflictError) for result in results) == 19


async def test_the_two_halves_of_a_deployment_do_not_overwrite_each_other(
    database: Database, store: Store
) -> None:
    run = a_run()
    await store.add_run(run)
    await store.want(a_deployment(run))
    stale = store.deployments[a_deployment(run).key]
    await asyncio.gather(
        store.want(replace(stale, wanted=Wanted.STOPPED, version=2)),
        store.saw(replace(stale, serving_version=1, port=20001)),
    )
    for seen in (store, await reopened(database)):
        made = seen.deployments[stale.key]
        assert (made.wanted, made.version) == (Wanted.STOPPED, 2)
        assert (made.serving_version, made.port) == (1, 20001)


async def test_a_foreign_run_and_an_unknown_one_read_the_same(store: Store) -> None:
    await store.add_run(a_run(owner="somebody"))
    with pytest.raises(NotFoundError) as foreign:
        store.run_of("a" * 32, "me")
    with pytest.raises(NotFoundError) as unknown:
        store.run_of("b" * 32, "me")
    assert str(foreign.value) == str(unknown.value)


async def test_deleting_a_run_takes_everything_of_it(database: Database, store: Store) -> None:
    run = a_run()
    await store.add_run(run)
    await store.save_preparation(Preparation(run_id=run.run_id), lease="GPU-1")
    await store.want(a_deployment(run))
    await store.delete_run(run.run_id)
    for seen in (store, await reopened(database)):
        assert not seen.runs
        assert not seen.preparations
        assert not seen.leases
        assert not seen.deployments
        assert seen.deployments_called(run.run_id) == []


async def test_a_runs_id_never_means_a_model_of_somebody_else(
    database: Database, store: Store
) -> None:
    run, foreign = a_run(), replace(a_run("b" * 32, owner="you"), model="a" * 32)
    for each in (run, foreign):
        await store.add_run(each)
    await store.want(a_deployment(foreign))

    assert store.deployments_called(run.run_id) == []
    await store.want(a_deployment(run))
    for seen in (store, await reopened(database)):
        assert {made.key.owner for made in seen.deployments_called(run.run_id)} == {"me"}


def test_every_field_of_a_deployment_has_one_writer() -> None:
    at_creation = {"key", "first_wanted_at"}
    assert sorted(WANTED + SEEN) == sorted({one.name for one in fields(Deployment)} - at_creation)


async def test_objectives_are_replaced_as_a_whole_and_go_with_their_run(
    store: Store, database: Database
) -> None:
    run, other = a_run(), a_run("b" * 32)
    await store.add_run(run)
    await store.add_run(other)
    strict = ObjectiveOverride(availability=99.99, seconds=86_400.0)
    await store.save_objectives(run.run_id, {"prod": strict, "dev": ObjectiveOverride()})
    await store.save_objectives(other.run_id, {"dev": ObjectiveOverride(latency_share=50.0)})
    assert (await reopened(database)).objectives == store.objectives

    await store.save_objectives(run.run_id, {"prod": strict})
    assert (await reopened(database)).objectives[run.run_id] == {"prod": strict}
    await store.save_objectives(other.run_id, {})
    await store.delete_run(run.run_id)
    assert (await reopened(database)).objectives == {}
    with pytest.raises(NotFoundError):
        await store.save_objectives(run.run_id, {"prod": strict})


async def test_files_that_sqlite_opened_to_read_only_are_opened_anew(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [sqlite3.OperationalError("attempt to write a readonly database")]
    refusals[0].sqlite_errorcode = sqlite3.SQLITE_READONLY
    begin = store_database._on_begin

    def refuse_once(connection: Connection) -> None:
        if refusals and connection.get_execution_options().get("persephone_writes"):
            raise refusals.pop()
        begin(connection)

    opened = Database(url)
    await opened.open()
    await opened.close()
    monkeypatch.setattr(store_database, "_on_begin", refuse_once)
    again = Database(url)

    # Nobody has to ask twice.
    await again.settle()

    assert refusals == []
    await again.close()
