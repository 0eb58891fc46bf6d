"""Quotas on the real service: refused with 429, counted right, and free again."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from server import keys
from server.messages import LANGUAGES
from server.pipeline import places
from tests.support import onnx_files
from tests.support.in_process import Here, serving
from tests.support.service import Caller
from tests.support.shapes import assert_error
from tests.support.weightless import Machine, WeightlessService

if TYPE_CHECKING:
    from pathlib import Path

MODEL = onnx_files.linear()
# Taken by its first bytes; what it is worth is looked at only in a preparation.
BULK = pickle.dumps(bytes(50_000))


def form(content: bytes = MODEL) -> aiohttp.FormData:
    made = aiohttp.FormData()
    made.add_field("file", content, filename="model.onnx")
    return made


async def refused(caller: Caller, code: str, **more: Any) -> dict[str, Any]:
    """Upload what is refused with 429; return the answer."""
    async with caller.http.post(f"{caller.url}/upload", data=form(**more)) as answer:
        body = await answer.json()
        assert (answer.status, body["code"]) == (429, code), body
        assert int(answer.headers["Retry-After"]) >= 1
        assert_error(body)
        return body


async def test_runs_are_limited_and_a_deletion_makes_room(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", max_runs_per_owner=2) as here:
        oldest, _ = [await here.caller.upload(MODEL) for _ in range(2)]
        body = await refused(here.caller, "quota_runs")
        assert oldest in body["message"]
        quota = (await here.caller.get("/runs"))["quota"]
        assert quota["runs"] == {"used": 2, "limit": 2}
        async with Caller(here.caller.url) as other:
            await other.upload(MODEL)

        assert await here.caller.call("DELETE", f"/runs/{oldest}") == (200, {"runId": oldest})
        await here.caller.upload(MODEL)


async def test_a_quota_counts_the_same_after_a_restart(tmp_path: Path) -> None:
    limits = {"max_runs_per_owner": 3, "max_runs_per_hour": 2}
    async with serving(tmp_path / "data", **limits) as here:
        for _ in range(2):
            await here.caller.upload(MODEL)
        before = (await here.caller.get("/runs"))["quota"]
        cookie = here.cookie()
    async with serving(tmp_path / "data", **limits) as here:
        here.caller.http.headers["Cookie"] = cookie
        assert (await here.caller.get("/runs"))["quota"] == before
        await refused(here.caller, "quota_runs_per_hour")


async def test_deleted_runs_still_count_for_the_hour(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", max_runs_per_hour=3) as here:
        for _ in range(3):
            run_id = await here.caller.upload(MODEL)
            await here.caller.call("DELETE", f"/runs/{run_id}")
        body = await refused(here.caller, "quota_runs_per_hour")
        assert "60" in body["message"]


async def test_all_runs_together_are_limited(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", max_runs=1) as here:
        await here.caller.upload(MODEL)
        async with Caller(here.caller.url) as other:
            await refused(other, "quota_runs_total")


async def test_stored_bytes_are_limited_and_equal_artifacts_count_once(tmp_path: Path) -> None:
    limit = 2 * len(BULK) + 2000
    async with serving(tmp_path / "data", max_stored_bytes_per_owner=limit) as here:
        largest = await here.caller.upload(BULK)
        await here.caller.upload(BULK)
        assert (await here.caller.get("/runs"))["quota"]["storedBytes"] == {
            "used": len(BULK),
            "limit": limit,
        }
        await here.caller.upload(BULK + b"x")
        body = await refused(here.caller, "quota_stored", content=BULK + b"yy")
        assert "/runs/" in body["message"]
        assert largest not in body["message"]


async def test_a_body_that_does_not_tell_its_length_is_stopped_at_the_limit(
    tmp_path: Path,
) -> None:
    async def pieces() -> Any:
        yield b"--x\r\nContent-Disposition: form-data; name=file; filename=m\r\n\r\n" + BULK
        while True:
            yield os.urandom(100_000)

    async with serving(tmp_path / "data", max_stored_bytes_per_owner=3_000_000) as here:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        url = f"{here.caller.url}/upload"
        async with here.caller.http.post(url, data=pieces(), headers=headers) as answer:
            assert (answer.status, (await answer.json())["code"]) == (429, "quota_stored")
        assert list((tmp_path / "data" / "blobs" / "incoming").iterdir()) == []
        assert (await here.caller.get("/runs"))["runs"] == []


async def test_the_disks_share_is_a_limit_for_all_together(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as here:
        usage = here.app[keys.USAGE]
        await here.caller.upload(BULK)
        disk = await usage.disk()

        async def small() -> Any:
            return type(disk)(total_bytes=60_000, free_bytes=disk.free_bytes)

        usage.disk = small  # type: ignore[method-assign]
        async with Caller(here.caller.url) as other:
            await refused(other, "quota_stored_total")


async def test_a_loop_without_cookies_fills_no_database(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", max_sessions_per_hour=3) as here:
        for _ in range(3):
            async with Caller(here.caller.url) as stranger:
                await stranger.upload(MODEL)
        async with Caller(here.caller.url) as stranger:
            await refused(stranger, "quota_sessions")
            # Reading needs no session, and failing makes none.
            assert (await stranger.get("/runs"))["runs"] == []


async def test_failed_uploads_begin_no_session_and_use_nothing(tmp_path: Path) -> None:
    limits = {"max_sessions_per_hour": 1, "max_runs_per_owner": 1, "max_runs_per_hour": 1}
    async with serving(tmp_path / "data", **limits) as here:
        for _ in range(3):
            status, _ = await here.caller.call("POST", "/upload", data=form(b"no model at all"))
            assert status == 415
        await here.caller.upload(MODEL)


async def uploads_end(here: Here) -> None:
    """Wait until the service has let go of everything that was under way."""
    usage = here.app[keys.USAGE]
    async with asyncio.timeout(10):
        while usage._admitted or usage._places._held:
            await asyncio.sleep(0.01)


async def test_an_upload_that_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    limits = {"max_uploads": 1, "max_uploads_per_owner": 1, "max_stored_bytes_per_owner": 200_000}
    async with serving(tmp_path / "data", **limits) as here:
        await here.caller.upload(MODEL)
        for _ in range(3):
            _, writer = await here.begin_upload(BULK, 150_000, here.cookie())
            incoming = tmp_path / "data" / "blobs" / "incoming"
            async with asyncio.timeout(10):
                while not list(incoming.iterdir()):
                    await asyncio.sleep(0.01)
            writer.transport.abort()
            await uploads_end(here)
            assert list(incoming.iterdir()) == []
        await here.caller.upload(BULK)
        assert (await here.caller.get("/runs"))["quota"]["runsPerHour"]["used"] == 2


async def test_uploads_at_once_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PATIENCE_SECONDS", 0.05)
    async with serving(tmp_path / "data", max_uploads=2, max_uploads_per_owner=1) as here:
        await here.caller.upload(MODEL)
        _, mine = await here.begin_upload(MODEL, 100_000, here.cookie())
        await admitted(here, 1)
        await refused(here.caller, "quota_uploads")
        async with Caller(here.caller.url) as other:
            await other.upload(MODEL)
        _, strangers = await here.begin_upload(MODEL, 100_000)
        await admitted(here, 2)
        async with Caller(here.caller.url) as other:
            await refused(other, "quota_uploads_total")
            # Only uploads are limited.
            assert (await other.get("/runs"))["runs"] == []
        mine.close()
        strangers.close()
        await uploads_end(here)
        await here.caller.upload(MODEL)


async def admitted(here: Here, number: int) -> None:
    async with asyncio.timeout(10):
        while len(here.app[keys.USAGE]._admitted) < number:
            await asyncio.sleep(0.01)


async def test_half_open_uploads_keep_nobody_from_uploading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(places, "_LOOK_SECONDS", 0.01)
    async with serving(tmp_path / "data", max_uploads=3) as here:
        stuck = [await here.begin_upload(MODEL, 100_000) for _ in range(3)]
        await admitted(here, 3)
        await here.caller.upload(MODEL)
        ended = [asyncio.create_task(reader.read()) for reader, _ in stuck]
        await asyncio.wait(ended, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        [answer] = [task.result() for task in ended if task.done()]
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"body_too_slow" in answer
        for task in ended:
            task.cancel()
        for _, writer in stuck:
            writer.close()


async def test_many_uploads_of_one_page_wait_for_each_other(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as here:
        await here.caller.upload(MODEL)
        assert len(set(await asyncio.gather(*(here.caller.upload(MODEL) for _ in range(20))))) == 20


async def test_preparations_are_limited_and_asking_for_one_again_is_free(tmp_path: Path) -> None:
    limits = {"prepare_concurrency": 1, "max_queued_preparations_per_owner": 2}
    async with serving(
        tmp_path / "data", wheel_index="http://127.0.0.1:9/simple", **limits
    ) as here:
        runs = [await here.caller.upload(MODEL) for _ in range(3)]
        async with here.app[keys.PREPARE]._turns.place(""):
            for run_id in (*runs[:2], *runs[:2]):
                await here.caller.post(f"/prepare/start?runId={run_id}")
            status, body = await here.caller.call("POST", f"/prepare/start?runId={runs[2]}")
            assert (status, body["code"]) == (429, "quota_preparations")
            assert (await here.caller.get(f"/prepare/status?runId={runs[2]}"))["phase"] == "Pending"
            await here.caller.call("DELETE", f"/runs/{runs[0]}")
            await here.caller.post(f"/prepare/start?runId={runs[2]}")


async def test_the_queue_of_preparations_is_limited(tmp_path: Path) -> None:
    limits = {"prepare_concurrency": 1, "max_queued_preparations": 1}
    async with serving(
        tmp_path / "data", wheel_index="http://127.0.0.1:9/simple", **limits
    ) as here:
        runs = [await here.caller.upload(MODEL) for _ in range(3)]
        async with here.app[keys.PREPARE]._turns.place(""):
            for run_id in runs[:2]:
                await here.caller.post(f"/prepare/start?runId={run_id}")
            url = f"{here.caller.url}/prepare/start?runId={runs[2]}"
            async with here.caller.http.post(url) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (429, "30")
                assert (await answer.json())["code"] == "quota_preparations_total"


def archive(padding: int) -> bytes:
    """A zip of a few KB whose model has so many bytes of zeros for weights."""
    made = io.BytesIO()
    shape = onnx_files.tensor_type(onnx_files.FLOAT, ["batch", 4])
    content = onnx_files.model(
        [onnx_files.node("Identity", ["x"], ["y"])],
        [onnx_files.value("x", shape)],
        [onnx_files.value("y", shape)],
        initializers=[onnx_files.tensor("w", [padding // 4], [0.0] * (padding // 4))],
    )
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model.onnx", content)
    return made.getvalue()


async def test_what_an_archive_unpacks_to_counts_and_may_be_too_much(tmp_path: Path) -> None:
    settings = {"environment_seconds": 0.1, "max_stored_bytes_per_owner": 500_000}
    async with serving(tmp_path / "data", **settings) as here:
        fits = await here.caller.upload(archive(300_000))
        await here.caller.prepare(fits)
        used = (await here.caller.get("/runs"))["quota"]["storedBytes"]["used"]
        assert 300_000 < used < 310_000
        over = await here.caller.upload(archive(400_000))
        status = await here.caller.prepare(over)
        step = next(step for step in status["steps"] if step["status"] == "Failed")
        assert (step["name"], step["code"]) == ("inspection", "quota_stored")
        assert not (tmp_path / "data" / "models" / over).exists()
        cookie = here.cookie()
        before = (await here.caller.get("/runs"))["quota"]
    async with serving(tmp_path / "data", **settings) as here:
        here.caller.http.headers["Cookie"] = cookie
        assert (await here.caller.get("/runs"))["quota"] == before
        await here.caller.call("DELETE", f"/runs/{fits}")
        status = await here.caller.prepare(over)
        assert status["steps"][1]["status"] == "Succeeded"


async def test_refusals_are_counted_and_the_disk_is_shown(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", max_runs_per_owner=1) as here:
        await here.caller.upload(BULK)
        await refused(here.caller, "quota_runs")
        async with here.caller.http.get(f"{here.caller.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        assert 'persephone_refusals_total{reason="quota_runs"} 1.0' in lines
        assert 'persephone_refusals_total{reason="quota_stored"} 0.0' in lines
        assert f'persephone_stored_bytes{{kind="artifacts"}} {len(BULK)}.0' in lines
        assert 'persephone_uploads_total{result="over_quota"} 1.0' in lines
        values = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
        assert float(values["persephone_disk_free_bytes"]) > 0
        assert float(values["persephone_stored_limit_bytes"]) > 0
        assert float(values["persephone_connections"]) >= 1


def test_every_refusal_has_a_text_in_both_languages() -> None:
    from server.api.edge import REFUSAL_CODES
    from server.messages import Messages

    messages = Messages()
    for language in LANGUAGES:
        assert set(REFUSAL_CODES) <= messages.codes(language)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"max_deployments_per_owner": 1}, "quota_deployments"),
        ({"max_replicas_per_owner": 2}, "quota_replicas"),
        ({"max_replicas": 2}, "quota_replicas_total"),
    ],
)
async def test_deployments_and_their_replicas_are_limited_and_a_stop_makes_room(
    tmp_path: Path, limits: dict[str, int], code: str
) -> None:
    async with (
        WeightlessService(tmp_path, Machine(), **limits) as service,
        Caller(service.url) as caller,
    ):
        run_id = await caller.upload(MODEL)
        assert (await caller.prepare(run_id))["phase"] == "Succeeded"
        await caller.deploy(run_id, "dev", replicas=2)
        url = f"{service.url}/deploy/start?runId={run_id}&env=prod"
        async with caller.http.post(url) as answer:
            body = await answer.json()
            assert (answer.status, body["code"]) == (429, code)
            assert int(answer.headers["Retry-After"]) >= 1
            assert_error(body)

        await caller.post(f"/deploy/stop?runId={run_id}&env=dev")
        assert (await caller.deploy(run_id, "prod"))["phase"] == "Succeeded"
