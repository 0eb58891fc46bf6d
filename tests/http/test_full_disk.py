"""The whole service on a disk that is full: what needs room says so, everything else works."""

from __future__ import annotations

import asyncio
import os
import pickle
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from server import keys
from server.errors import StorageFullError
from tests.support import onnx_files
from tests.support.in_process import Here, serving
from tests.support.service import Caller
from tests.support.shapes import assert_error, assert_prepare_status
from tests.support.small_disk import SmallDisk, small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = onnx_files.linear()
NO_PACKAGES = {"wheel_index": "http://127.0.0.1:9/simple"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", 64) as made:
        yield made


def form(content: bytes = MODEL) -> aiohttp.FormData:
    made = aiohttp.FormData()
    made.add_field("file", content, filename="model.onnx")
    return made


async def assert_no_room(caller: Caller, method: str, path: str, **more: Any) -> None:
    status, body = await caller.call(method, path, **more)
    assert (status, body["code"]) == (507, "disk_full"), body
    assert_error(body)


async def prepared_in_vain(here: Here, disk: SmallDisk, run_id: str) -> dict[str, Any]:
    """Start a preparation, fill the disk before it has its turn, and return how it ended."""
    turns = here.app[keys.PREPARE]._turns
    async with turns.place(""), turns.place(""):
        await here.caller.post(f"/prepare/start?runId={run_id}")
        disk.fill()
    ended: dict[str, Any] = await here.caller.until(
        f"/prepare/status?runId={run_id}", lambda now: now["phase"] != "Running"
    )
    return ended


async def test_what_needs_room_is_507_and_everything_else_works(disk: SmallDisk) -> None:
    async with serving(disk.path / "data", **NO_PACKAGES) as here:
        caller = here.caller
        large = await caller.upload(pickle.dumps(os.urandom(1_000_000)))
        small, tried = [await caller.upload(MODEL) for _ in range(2)]
        failed = await prepared_in_vain(here, disk, tried)
        assert_prepare_status(failed, tried)
        assert failed["phase"] == "Failed"
        assert "disk_full" in [step.get("code") for step in failed["steps"]]
        # Polls see the failure before it is kept, which costs the reserve.
        async with asyncio.timeout(10):
            while (disk.path / "data" / "reserve").exists():
                await asyncio.sleep(0.01)
        disk.fill()

        await assert_no_room(caller, "POST", "/upload", data=form())
        async with Caller(caller.url) as stranger:
            await assert_no_room(stranger, "POST", "/upload", data=form())
            assert list(stranger.http.cookie_jar) == []
        await assert_no_room(caller, "POST", f"/prepare/start?runId={small}")
        for path in (
            "/runs",
            f"/prepare/status?runId={tried}",
            f"/deploy/status?runId={tried}&env=dev",
            f"/monitor/summary?runId={small}",
            "/healthz",
        ):
            await caller.get(path)
        status, ready = await caller.call("GET", "/readyz")
        assert (status, ready["status"]) == (503, "not_ready")
        async with caller.http.get(f"{caller.url}/metrics") as answer:
            assert "persephone_disk_free_bytes 0.0" in (await answer.text()).splitlines()

        # The reserve is used up: the run's own bytes make the room to say that it is gone.
        assert (await caller.call("DELETE", f"/runs/{large}"))[0] == 200
        assert disk.free > 500_000
        assert (await caller.call("DELETE", f"/runs/{small}"))[0] == 200
        disk.clear()
        fresh = await caller.upload(MODEL)
        listed = [run["runId"] for run in (await caller.get("/runs"))["runs"]]
        assert listed == [fresh, tried]


async def test_a_deletion_works_first_on_the_reserve(disk: SmallDisk) -> None:
    async with serving(disk.path / "data") as here:
        runs = [await here.caller.upload(pickle.dumps(os.urandom(100_000))) for _ in range(3)]
        disk.fill()
        for run_id in runs:
            assert (await here.caller.call("DELETE", f"/runs/{run_id}"))[0] == 200
        assert (await here.caller.get("/runs"))["runs"] == []
        assert list((disk.path / "data" / "blobs").glob("??/*")) == []
        disk.clear()
        await here.app[keys.STORE]._reserve.fill()  # type: ignore[union-attr]
        assert (disk.path / "data" / "reserve").exists()


async def test_a_deletion_that_no_room_could_be_made_for_is_finished_once_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "data") as here:
        run_id = await here.caller.upload(MODEL)

        async def fill_what_is_freed(*_args: object) -> None:
            raise StorageFullError("disk_full")

        with monkeypatch.context() as patch:
            patch.setattr(here.app[keys.STORE], "_delete_run", fill_what_is_freed)
            await assert_no_room(here.caller, "DELETE", f"/runs/{run_id}")
            await here.app[keys.RUNS].sweep()
            assert len((await here.caller.get("/runs"))["runs"]) == 1
        await here.app[keys.RUNS].sweep()
        assert (await here.caller.get("/runs"))["runs"] == []
        assert (await here.caller.call("DELETE", f"/runs/{run_id}"))[0] == 404


async def test_an_upload_for_which_there_is_no_room_is_refused_before_it_is_sent(
    disk: SmallDisk,
) -> None:
    async with serving(disk.path / "data", max_stored_percent=100) as here:
        reader, writer = await here.raw()
        writer.write(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65000000\r\n"
            b"Expect: 100-continue\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        assert b" 507 " in await reader.readline()
        writer.close()


async def test_a_disk_that_fills_while_the_file_arrives_ends_the_upload(disk: SmallDisk) -> None:
    async with serving(disk.path / "data") as here:
        length = 8_000_000
        reader, writer = await here.begin_upload(pickle.dumps(os.urandom(3_000_000)), length)
        while not list((disk.path / "data" / "blobs" / "incoming").iterdir()):
            await asyncio.sleep(0.01)
        disk.fill()
        writer.write(os.urandom(length - 3_000_000))
        assert b" 507 " in await reader.readline()
        writer.close()
        assert list((disk.path / "data" / "blobs" / "incoming").iterdir()) == []
        async with Caller(here.caller.url) as other:
            assert (await other.get("/runs"))["runs"] == []


async def test_the_service_starts_again_on_a_full_disk(disk: SmallDisk) -> None:
    async with serving(disk.path / "data") as here:
        run_id = await here.caller.upload(pickle.dumps(os.urandom(100_000)))
        cookie = here.cookie()
    disk.fill()
    async with serving(disk.path / "data") as here:
        here.caller.http.headers["Cookie"] = cookie
        assert [run["runId"] for run in (await here.caller.get("/runs"))["runs"]] == [run_id]
        assert (await here.caller.call("DELETE", f"/runs/{run_id}"))[0] == 200
