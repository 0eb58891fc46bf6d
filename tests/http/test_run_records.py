"""Logs, passport and support bundle of a run, over HTTP."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import threading
import time
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from server import keys
from server.api import support
from server.environments.failures import named_failure
from server.pipeline.bundle import zipped
from server.store import run_logs
from tests.support.told import MODEL, World, telling
from tests.support.weightless import Model, WeightlessAttempt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with telling(tmp_path) as made:
        yield made


async def test_the_last_lines_are_there_as_text_and_as_json(world: World) -> None:
    run_id = await world.upload()
    world.say(run_id, "one", "cannot open /srv/data/secret/model.onnx", "three")
    path = f"/runs/{run_id}/logs"
    async with world.caller.http.get(world.caller.url + path) as answer:
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        lines = (await answer.text()).splitlines()
    assert [line.partition(" load | ")[2] for line in lines] == [
        *("one", "cannot open …/model.onnx", "three")
    ]
    headers = {"Accept": "application/x-ndjson"}
    url = f"{world.caller.url}{path}?lines=2"
    async with world.caller.http.get(url, headers=headers) as answer:
        assert answer.content_type == "application/x-ndjson"
        found = [json.loads(line) for line in (await answer.text()).splitlines()]
    assert [each["line"] for each in found] == ["cannot open …/model.onnx", "three"]
    assert {each["source"] for each in found} == {"load"}


async def test_why_packages_could_not_be_installed_stands_in_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def build(_attempt: WeightlessAttempt) -> None:
        said = "error: No solution found\n  cause: Because a depends on b\n\nhint: try c"
        raise named_failure(said, ())

    monkeypatch.setattr(WeightlessAttempt, "_build", build)
    run_id = await world.upload()
    assert (await world.caller.prepare(run_id, "cpu"))["phase"] == "Failed"
    async with world.caller.http.get(f"{world.caller.url}/runs/{run_id}/logs") as answer:
        assert (await answer.text()).splitlines()[-1].endswith("environment | hint: try c")


async def test_new_lines_follow_until_the_run_is_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_logs, "_PAUSE_SECONDS", 0.01)
    run_id = await world.upload()
    world.say(run_id, "before")
    async with world.open(f"/runs/{run_id}/logs?follow=true") as answer:
        assert (await answer.content.readline()).endswith(b"before\n")
        world.say(run_id, "after")
        assert (await answer.content.readline()).endswith(b"after\n")
        await world.caller.call("DELETE", f"/runs/{run_id}")
        assert await asyncio.wait_for(answer.read(), 20) == b""
    assert not list(world.service._data_dir.glob("logs/*"))


async def test_a_malformed_wish_for_lines_is_refused(world: World) -> None:
    run_id = await world.upload()
    for query in ("lines=-1", "lines=1001", "lines=x", "follow=yes", "follow=", "lines=1&lines=2"):
        status, body = await world.caller.call("GET", f"/runs/{run_id}/logs?{query}")
        assert status == 400
        assert body["code"] in {"parameter_malformed", "parameter_repeated"}


# ── passport and bundle


async def test_there_is_no_passport_before_the_preparation(world: World) -> None:
    run_id = await world.upload()
    status, body = await world.caller.call("GET", f"/runs/{run_id}/passport")
    assert (status, body["code"]) == (404, "passport_absent")
    await world.caller.prepare(run_id, "cpu")
    kept = world.service.store.preparation(run_id).passport
    assert await world.caller.get(f"/runs/{run_id}/passport") == kept


async def bundle(world: World, run_id: str) -> dict[str, bytes]:
    url = f"{world.caller.url}/runs/{run_id}/support-bundle"
    async with world.caller.http.get(url) as answer:
        assert answer.status == 200
        assert answer.content_type == "application/zip"
        assert answer.headers["Content-Disposition"].startswith("attachment")
        packed = zipfile.ZipFile(io.BytesIO(await answer.read()))
    return {name: packed.read(name) for name in packed.namelist()}


async def test_a_bundle_has_everything_but_secrets(tmp_path: Path) -> None:
    secret = "https://user:hunter2@wheels.example/simple"
    async with telling(tmp_path, wheel_index=secret) as world:
        fresh = await bundle(world, await world.upload())
        run_id = await world.deployed()
        world.say(run_id, "the last words")
        files = await bundle(world, run_id)

        assert files.keys() - fresh.keys() == {"passport.json", "lock.txt", "environment.json"}
        assert b"the last words" in files["logs.txt"]
        assert json.loads(files["timeline.json"]) == await world.events(run_id)
        assert json.loads(files["preparation.json"])["phase"] == "Succeeded"
        [made] = json.loads(files["deployments.json"])
        assert (made["environment"], made["runId"], made["servingRunId"]) == ("dev", run_id, run_id)
        [_, install] = json.loads(files["environment.json"])["commands"]
        assert "--default-index 'left out'" in install
        settings = json.loads(files["settings.json"])
        assert settings["wheel_index"] == settings["data_dir"] == "left out"
        assert settings["load_seconds"] == 120.0
        assert json.loads(files["versions.json"])["packages"]["aiohttp"]
        whole = b"".join(files.values())
        for hidden in (
            b"hunter2",
            str(tmp_path).encode(),
            world.service.store.runs[run_id].owner.encode(),
        ):
            assert hidden not in whole


async def test_a_run_that_serves_still_has_its_deployment_in_the_bundle(world: World) -> None:
    names = (Model.SOUND.value, Model.UNSERVABLE.value)
    older, newer = [await world.caller.upload(MODEL, name, model="iris") for name in names]
    for run_id in (older, newer):
        await world.caller.prepare(run_id, "cpu")
        await world.caller.deploy(run_id)
    [made] = json.loads((await bundle(world, older))["deployments.json"])
    assert (made["runId"], made["servingRunId"]) == (newer, older)
    assert (made["version"], made["servingVersion"]) == ("2", "1")


async def test_few_bundles_are_packed_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await world.upload()
    packing, most = 0, 0
    count = threading.Lock()

    def slowly(files: dict[str, bytes]) -> bytes:
        nonlocal packing, most
        with count:
            packing += 1
            most = max(most, packing)
        time.sleep(0.02)
        with count:
            packing -= 1
        return zipped(files)

    monkeypatch.setattr(support, "zipped", slowly)
    found = await asyncio.gather(*(bundle(world, run_id) for _ in range(8)))
    assert len(found) == 8
    assert most <= support.BUNDLES_AT_ONCE


async def test_what_a_failing_disk_keeps_of_a_deleted_run_is_removed_once_it_is_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with telling(tmp_path) as world:
        run_id = await world.deployed()
        world.say(run_id, "one")
        await world.service.app[keys.LOGS].tail(run_id)
        data = world.service.app[keys.SETTINGS].data_dir
        places = [data / name / run_id for name in ("models", "logs")]
        # Its service prepares nothing, and so leaves no folder of the model.
        places[0].mkdir(parents=True)
        rmdir = os.rmdir

        def fail(path: Any, **more: Any) -> None:
            if str(path).endswith(run_id):
                raise OSError(errno.EIO, "the disk fails", path)
            rmdir(path, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rmdir", fail)
            assert (await world.caller.call("DELETE", f"/runs/{run_id}"))[0] == 200
        assert all(place.is_dir() for place in places)
        # The artifact is gone nevertheless.
        assert [path for path in (data / "blobs").rglob("*") if path.is_file()] == []
        await world.service.app[keys.RUNS].sweep()
        assert not any(place.exists() for place in places)
