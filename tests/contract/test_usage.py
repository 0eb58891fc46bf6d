"""Counting for the quotas, over a real database and real folders."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from server.errors import BusyError, StorageFullError
from server.pipeline.quotas import Disk
from server.pipeline.usage import Usage
from server.records import DeploymentKey, Run, now
from server.settings import Settings
from server.states import Wanted
from server.store.database import Database
from server.store.state import Store
from tests.support.records import a_deployment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'persephone.db'}")
    await database.open()
    made = Store(database)
    await made.open()
    yield made
    await database.close()


def usage_of(store: Store, folder: Path, **settings: int) -> Usage:
    return Usage(Settings(data_dir=folder, **settings), store, folder / "models")


def run(number: int, owner: str = "me", size: int = 10) -> Run:
    return Run(
        run_id=f"{number:032x}",
        owner=owner,
        model=f"{number:032x}",
        file_name="m.onnx",
        size_bytes=size,
        digest=f"{number:064x}",
        created_at=now(),
    )


async def test_deployments_that_are_up_count_and_a_new_version_counts_no_second_time(
    store: Store, tmp_path: Path
) -> None:
    usage = usage_of(store, tmp_path, max_deployments_per_owner=2, max_replicas_per_owner=4)
    mine, theirs = run(1), run(2, "you")
    for one in (mine, theirs):
        await store.add_run(one)
    for environment in ("dev", "stage"):
        await store.want(a_deployment(mine, environment=environment, replicas=2))
    usage.check_deployment(DeploymentKey("me", mine.model, "dev"), 2)
    usage.check_deployment(DeploymentKey("you", theirs.model, "dev"), 4)
    with pytest.raises(BusyError, match="quota_replicas"):
        usage.check_deployment(DeploymentKey("me", mine.model, "dev"), 3)
    with pytest.raises(BusyError, match="quota_deployments"):
        usage.check_deployment(DeploymentKey("me", mine.model, "prod"), 1)
    await store.want(a_deployment(mine, environment="stage", wanted=Wanted.STOPPED))
    usage.check_deployment(DeploymentKey("me", mine.model, "prod"), 2)
    assert usage.shown("me")["deployments"] == {"used": 1, "limit": 2}


async def test_only_an_owners_own_runs_of_the_last_hour_count(store: Store, tmp_path: Path) -> None:
    usage = usage_of(store, tmp_path)
    young, old = run(1), replace(run(2), created_at=now() - timedelta(hours=2))
    # The clock was set back after these two.
    soon = replace(run(3), created_at=now() + timedelta(minutes=5))
    later = replace(run(4), created_at=now() + timedelta(days=5))
    for one in (young, old, soon, later, run(5, "you")):
        await store.add_run(one)
    assert usage.shown("me")["runsPerHour"]["used"] == 2
    assert usage.shown("me")["runs"]["used"] == 4
    for one in (young, old):
        await store.delete_run(one.run_id)
        usage.deleted(one)
    assert usage.shown("me")["runsPerHour"]["used"] == 2
    assert usage.shown("nobody")["runs"]["used"] == 0


async def test_deleted_runs_are_forgotten_after_an_hour(store: Store, tmp_path: Path) -> None:
    usage = usage_of(store, tmp_path)
    usage.deleted(replace(run(1), created_at=now() - timedelta(hours=2)))
    usage.deleted(run(2, "you"))
    assert set(usage._deleted) == {"you"}


async def test_a_models_own_files_count_and_links_to_its_artifact_do_not(
    store: Store, tmp_path: Path
) -> None:
    usage = usage_of(store, tmp_path)
    made = run(1, size=100)
    await store.add_run(made)
    blob = tmp_path / "blob"
    blob.write_bytes(bytes(100))
    folder = tmp_path / "models" / made.run_id
    async with usage.unpacking(made):
        (folder / "model.onnx").hardlink_to(blob)
    assert usage.model_bytes() == 0
    async with usage.unpacking(made):
        assert list(folder.iterdir()) == []
        (folder / "model.onnx").write_bytes(bytes(70))
        (folder / "link").symlink_to(blob)
    assert usage.model_bytes() == 70
    assert usage.shown("me")["storedBytes"]["used"] == 170
    again = usage_of(store, tmp_path)
    await again.open()
    assert again.shown("me") == usage.shown("me")
    usage.deleted(made)
    assert usage.model_bytes() == 0


async def test_what_fails_to_unpack_leaves_nothing(store: Store, tmp_path: Path) -> None:
    usage = usage_of(store, tmp_path, max_stored_bytes_per_owner=50)
    made = run(1)
    await store.add_run(made)
    folder = tmp_path / "models" / made.run_id
    with pytest.raises(ValueError, match="broken"):
        async with usage.unpacking(made):
            (folder / "part-0").write_bytes(bytes(30))
            raise ValueError("broken")
    assert not folder.exists()
    with pytest.raises(BusyError, match="quota_stored"):
        async with usage.unpacking(made):
            (folder / "model.onnx").write_bytes(bytes(41))
    assert not folder.exists()
    assert usage.model_bytes() == 0


async def test_nothing_is_unpacked_into_the_room_that_is_kept_free(
    store: Store, tmp_path: Path
) -> None:
    usage = usage_of(store, tmp_path)

    async def tight() -> Disk:
        return Disk(total_bytes=1000, free_bytes=100)

    usage.disk = tight  # type: ignore[method-assign]
    with pytest.raises(StorageFullError, match="disk_full"):
        async with usage.unpacking(run(1)):
            pytest.fail("was begun")


async def test_uploads_under_way_hold_the_room_that_they_will_need(
    store: Store, tmp_path: Path
) -> None:
    usage = usage_of(store, tmp_path, max_uploads_per_owner=3, max_runs_per_owner=2)
    async with usage.uploading("me", 1_000_000) as admission:
        assert (await usage.disk()).promised_bytes == 1_000_000
        admission.received_bytes = 400_000
        assert (await usage.disk()).promised_bytes == 600_000
        async with usage.uploading("me", 0):
            assert usage.shown("me")["runs"]["used"] == 2
            with pytest.raises(BusyError, match="quota_runs"):
                async with usage.uploading("me", 0):
                    pass
    assert (await usage.disk()).promised_bytes == 0
    assert usage.shown("me")["runs"]["used"] == 0
