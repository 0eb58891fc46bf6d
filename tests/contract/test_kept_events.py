"""Events on a real SQLite file: one transaction with their change, numbered for good, bounded."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, func, insert, select

from server.errors import UnavailableError
from server.faults import Point
from server.records import Event, Preparation, Run, Text, now
from server.states import Phase
from server.store import database, events, rows, tables, timeline
from server.store.database import Database
from server.store.state import Store
from tests.support.records import a_deployment, a_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Disk:
    """A database on the disk, whose next commit may fail."""

    def __init__(self, path: Path) -> None:
        self.fails_at: Point | None = None
        self.database = Database(f"sqlite+aiosqlite:///{path}", reached=self._reached)

    def _reached(self, point: Point) -> None:
        if point is self.fails_at:
            raise UnavailableError("database_unavailable")

    async def store(self) -> Store:
        opened = Store(self.database)
        await opened.open()
        return opened


def iris(letter: str = "a") -> Run:
    return a_run(letter * 32, model="iris")


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    made = Disk(tmp_path / "test.db")
    await made.database.open()
    yield made
    await made.database.close()


async def codes(store: Store, run: Run, after: int = 0) -> list[str]:
    found = await store.events.page(run.run_id, after)
    return [event.code.removeprefix("event_") for event in found]


async def test_every_change_is_told_with_it(disk: Disk) -> None:
    store, run = await disk.store(), iris()
    await store.add_run(run)
    made = Preparation(run_id=run.run_id, attempt=1, phase=Phase.RUNNING, device="GPU-1")
    await store.save_preparation(made, lease="GPU-1")
    await store.save_preparation(replace(made, phase=Phase.FAILED), release=True)
    await store.want(a_deployment(run))
    known = store.deployments[a_deployment(run).key]
    crash = timeline.of_crash(known.key, run.run_id, 1, 0, Text(code="replica_stuck"))
    await store.saw(replace(known, serving_version=1, serving_run_id=run.run_id), [crash])

    found = await codes(store, run)
    assert found == [
        *("uploaded", "preparation_started", "lease_taken", "lease_released"),
        *("deploy_wanted", "replica_crashed", "serving"),
    ]
    again = await disk.store()
    assert await codes(again, run) == found
    assert again.events.newest(run.run_id) == store.events.newest(run.run_id) == len(found)


@pytest.mark.parametrize("point", [Point.DATABASE_BEGUN, Point.DATABASE_WRITTEN])
async def test_a_change_that_fails_is_not_told(disk: Disk, point: Point) -> None:
    store, run = await disk.store(), iris()
    await store.add_run(run)
    disk.fails_at = point
    with pytest.raises(UnavailableError):
        await store.want(a_deployment(run))
    disk.fails_at = None
    assert await codes(store, run) == ["uploaded"]
    await store.want(a_deployment(run))
    assert await codes(store, run) == ["uploaded", "deploy_wanted"]


async def test_what_was_shown_before_it_could_be_kept_is_told_once(disk: Disk) -> None:
    store, run = await disk.store(), iris()
    await store.add_run(run)
    made = Preparation(run_id=run.run_id, attempt=1, phase=Phase.RUNNING)
    await store.save_preparation(made)
    steps = (replace(made.steps[0], status=Phase.FAILED, completed_at=now()), *made.steps[1:])
    failed = replace(made, phase=Phase.FAILED, steps=steps)
    store.show_progress(failed)
    await store.save_preparation(failed, while_shown=True)
    await store.save_preparation(failed, while_shown=True)
    assert await codes(store, run) == ["uploaded", "preparation_started", "step_failed"]


async def test_a_data_folder_from_before_there_were_events_goes_on(tmp_path: Path) -> None:
    path, run = tmp_path / "old.db", iris()
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        connection.execute(insert(tables.runs).values(rows.run_row(run)))
        made = Preparation(run_id=run.run_id, attempt=1, phase=Phase.SUCCEEDED)
        connection.execute(insert(tables.preparations).values(rows.preparation_row(made)))
        connection.execute(
            insert(tables.deployments).values(rows.deployment_row(a_deployment(run)))
        )
    engine.dispose()

    disk = Disk(path)
    await disk.database.open()
    store = await disk.store()
    assert store.runs == {run.run_id: run}
    assert (store.events.newest(run.run_id), await codes(store, run)) == (0, [])
    await store.want(replace(store.deployments[a_deployment(run).key], version=2))
    assert await codes(store, run) == ["deploy_wanted"]
    await disk.database.close()


async def test_numbers_go_up_for_good_though_the_newest_are_deleted(disk: Disk) -> None:
    store = await disk.store()
    first, second = iris("a"), iris("b")
    await store.add_run(first)
    await store.add_run(second)
    newest = store.events.newest(second.run_id)
    await store.delete_run(second.run_id)
    async with disk.database.read() as connection:
        left = await connection.scalar(select(func.count()).select_from(tables.events))
    assert left == 1
    store = await disk.store()
    await store.add_run(second)
    assert store.events.newest(second.run_id) > newest


async def test_a_replica_that_crashes_for_ever_fills_no_disk(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_EVENTS", 5)
    store, run, other = await disk.store(), iris("a"), iris("b")
    await store.add_run(other)
    await store.add_run(run)
    for _ in range(4):
        crash = Event(run_id=run.run_id, code="event_replica_crashed", at=now())
        await store.tell([crash, crash])
    assert await codes(store, run) == ["replica_crashed"] * 5
    assert await codes(store, other) == ["uploaded"]


async def test_runs_that_are_gone_are_told_nothing(disk: Disk) -> None:
    store = await disk.store()
    await store.tell([Event(run_id="c" * 32, code="event_stopped", at=now())])
    assert store.events.newest("c" * 32) == 0


async def test_who_waits_is_woken_by_news_and_by_the_end(disk: Disk) -> None:
    store, run = await disk.store(), iris()
    await store.add_run(run)
    # What has come meanwhile is not waited for.
    await asyncio.wait_for(store.events.news(run.run_id, 0), 20)
    last = store.events.newest(run.run_id)
    waiting = asyncio.create_task(store.events.news(run.run_id, last))
    await asyncio.sleep(0)
    await store.want(a_deployment(run))
    await asyncio.wait_for(waiting, 20)
    last = store.events.newest(run.run_id)
    waiting = asyncio.create_task(store.events.news(run.run_id, last))
    await asyncio.sleep(0)
    await store.delete_run(run.run_id)
    await asyncio.wait_for(waiting, 20)
    assert store.events._waiting == {}
