"""Every writing part on a disk that is really full: named, nothing half left, deletion still works."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.targets import Target
from server.environments.build import Environments
from server.environments.lock import lock_of
from server.environments.trees import build_tree
from server.errors import StepFailedError, StorageFullError, is_full
from server.records import Deployment, Preparation, Run, now
from server.settings import Settings
from server.states import Phase, Wanted
from server.store.blobs import Blobs
from server.store.database import Database
from server.store.history import HistoryFile
from server.store.reserve import Reserve
from server.store.sessions import Sessions
from server.store.state import Store
from tests.support.records import a_deployment
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.tiny_wheels import empty_index, wheel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", 48) as made:
        yield made


@pytest.fixture
async def database(disk: SmallDisk) -> AsyncIterator[Database]:
    made = Database(f"sqlite+aiosqlite:///{disk.path / 'persephone.db'}")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def store(disk: SmallDisk, database: Database) -> Store:
    reserve = Reserve(disk.path / "reserve")
    assert await reserve.fill()
    made = Store(database, reserve)
    await made.open()
    return made


def run(number: int) -> Run:
    return Run(
        run_id=f"{number:032x}",
        owner="me",
        model=f"{number:032x}",
        file_name="m.onnx",
        size_bytes=10,
        digest=f"{number:064x}",
        created_at=now(),
    )


async def assert_full(store: Store) -> None:
    """New things find no room, and leave nothing in memory either."""
    before = set(store.runs)
    with pytest.raises(StorageFullError, match="disk_full"):
        await store.add_run(run(99))
    assert set(store.runs) == before


async def test_what_frees_room_can_be_said_on_a_full_disk(disk: SmallDisk, store: Store) -> None:
    runs = [run(number) for number in range(3)]
    for one in runs:
        await store.add_run(one)
    await store.want(a_deployment(runs[1]))
    running = Preparation(run_id=runs[2].run_id, phase=Phase.RUNNING, device="GPU-1")
    await store.save_preparation(running, lease="GPU-1")
    disk.fill()
    await assert_full(store)
    with pytest.raises(StorageFullError):
        await store.want(a_deployment(runs[0]))
    with pytest.raises(StorageFullError):
        await store.save_preparation(Preparation(run_id=runs[0].run_id, phase=Phase.RUNNING))

    await store.delete_run(runs[0].run_id)
    assert not (disk.path / "reserve").exists()
    made = store.deployments_of(runs[1].run_id)[0]
    await store.saw(made)
    await store.want(Deployment(**{**fields_of(made), "wanted": Wanted.STOPPED}))
    failed = Preparation(run_id=runs[2].run_id, phase=Phase.FAILED)
    await store.save_preparation(failed, release=True)
    assert store.leases == {}

    again = Store(store._database)
    await again.open()
    assert set(again.runs) == {runs[1].run_id, runs[2].run_id}
    assert next(iter(again.deployments.values())).wanted is Wanted.STOPPED
    assert again.preparation(runs[2].run_id).phase is Phase.FAILED


def fields_of(made: Deployment) -> dict[str, object]:
    return {name: getattr(made, name) for name in made.__dataclass_fields__}


async def test_without_a_reserve_a_full_disk_is_named_and_nothing_changes(
    disk: SmallDisk, store: Store
) -> None:
    await store.add_run(run(1))
    disk.fill()
    assert await store._reserve.release()  # type: ignore[union-attr]
    disk.fill()
    for _ in range(2):
        with pytest.raises(StorageFullError, match="disk_full"):
            await store.delete_run(run(1).run_id)
        assert set(store.runs) == {run(1).run_id}
    disk.clear()
    await store.delete_run(run(1).run_id)
    assert store.runs == {}


async def test_sessions_find_no_room_and_come_back_with_it(
    disk: SmallDisk, database: Database
) -> None:
    sessions = Sessions(database)
    disk.fill()
    with pytest.raises(StorageFullError, match="disk_full"):
        await sessions.save("k", "x" * 20_000, 1e12)
    assert await sessions.load("k") is None
    disk.clear()
    await sessions.save("k", "x", 1e12)
    assert await sessions.load("k") is not None


async def test_the_reserve_is_taken_from_ample_room_only(disk: SmallDisk) -> None:
    reserve = Reserve(disk.path / "reserve")
    size = 48 * 1024**2 // 50
    disk.fill(leave=3 * size)
    assert not await reserve.fill()
    assert not (disk.path / "reserve").exists()
    disk.clear()
    assert await reserve.fill()
    assert (disk.path / "reserve").stat().st_blocks * 512 >= size
    assert await reserve.fill()
    disk.fill()
    assert await reserve.release()
    assert disk.free >= size
    assert not await reserve.release()


async def test_an_artifact_that_finds_no_room_leaves_nothing(disk: SmallDisk) -> None:
    blobs = Blobs(disk.path / "blobs")
    await blobs.open()
    disk.fill(leave=5 * 1024**2)
    with pytest.raises(StorageFullError, match="disk_full"):
        async with blobs.incoming() as incoming:
            for _ in range(20):
                await incoming.write(os.urandom(1024**2))
            await incoming.finish()
    assert disk.free == 5 * 1024**2
    assert [path for path in (disk.path / "blobs").rglob("*") if path.is_file()] == []


async def test_a_disk_that_is_full_to_the_last_inode_is_named(disk: SmallDisk) -> None:
    blobs = Blobs(disk.path / "blobs")
    await blobs.open()
    crowd = disk.path / "crowd"
    crowd.mkdir()
    try:
        number = 0
        while True:
            (crowd / str(number)).touch()
            number += 1
    except OSError as error:
        assert is_full(error)
    with pytest.raises(StorageFullError, match="disk_full"):
        async with blobs.incoming():
            pass


def test_the_history_is_kept_once_there_is_room_again(disk: SmallDisk) -> None:
    monitor = EmbeddedMonitor()
    history = HistoryFile(monitor, disk.path / "history.db")
    history.open()
    target = Target(run_id="r1", model="m", environment="dev", replica="0", version="1")
    monitor.ingest(target, 1000.0, InferenceInstruments(None, started_at=1.0).text())
    disk.fill()
    [changes] = history.unsaved()
    assert not history.save(changes)
    history.not_saved(changes)
    disk.clear()
    [changes] = history.unsaved()
    assert history.save(changes)
    history.close()
    again = EmbeddedMonitor()
    kept = HistoryFile(again, disk.path / "history.db")
    kept.open()
    kept.close()
    assert [watched for watched, _ in again.watched()] == [target]


def test_a_tree_is_made_whole_or_not_at_all(disk: SmallDisk) -> None:
    disk.fill(leave=100_000)
    with pytest.raises(OSError, match="space"):
        build_tree(disk.path / "trees", "model_server")
    assert list((disk.path / "trees").iterdir()) == []
    disk.clear()
    assert (build_tree(disk.path / "trees", "model_server") / "server").is_dir()


@pytest.mark.parametrize("leave", [0, 200_000, 3_000_000])
async def test_an_environment_that_finds_no_room_fails_by_name_and_leaves_nothing(
    tmp_path: Path, disk: SmallDisk, leave: int
) -> None:
    wheels = tmp_path / "wheels"
    wheel(wheels, "bulky", "1.0", files={"bulky/data.txt": "x" * 8_000_000})
    settings = Settings(
        wheel_links=(str(wheels),),
        wheel_index=empty_index(tmp_path / "index"),
        keep_free_bytes=1,
    )
    environments = Environments(settings, disk.path / "environments")
    lock = lock_of("bulky==1.0", "cpu")
    await environments.open()
    disk.fill(leave=leave)
    with pytest.raises(StepFailedError, match="disk_full"):
        await environments.build(lock, lambda _code, _params: None)
    left = {path.name for path in (disk.path / "environments").iterdir()}
    assert {name for name in left if name[0] != "."} == set()
    assert list((disk.path / "environments" / ".tmp").iterdir()) == []
    disk.clear()
    assert (await environments.build(lock, lambda _code, _params: None)).python.exists()
    await environments.close()


async def test_an_environment_is_not_begun_in_the_room_that_is_kept_free(
    tmp_path: Path, disk: SmallDisk
) -> None:
    wheels = tmp_path / "wheels"
    wheel(wheels, "small", "1.0")
    settings = Settings(wheel_links=(str(wheels),), wheel_index=empty_index(tmp_path / "index"))
    environments = Environments(settings, disk.path / "environments")
    await environments.open()
    disk.fill(leave=4 * 1024**2)
    with pytest.raises(StepFailedError, match="disk_full"):
        await environments.build(lock_of("small==1.0", "cpu"), lambda _code, _params: None)
    await environments.close()
