"""kill -9 of the service at any moment: what was acknowledged is there afterwards, nothing else is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.onnx_files import busy, shifted
from tests.support.predictions import addresses
from tests.support.processes import processes_of, replicas_of
from tests.support.service import Caller, Service, running
from tests.support.shapes import assert_prepare_status, assert_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("TEST_KILLS", "3"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
ZEROS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}


@dataclass
class Acknowledged:
    """What the service has answered, and so has to keep: by runId, and by runId and environment."""

    uploaded: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    prepared: set[str] = field(default_factory=set)
    deployed: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)


@pytest.fixture
async def own_environments(tmp_path: Path, environments: ModelEnvironments) -> Path:
    """A data folder whose environments are its own; only the downloads are shared."""
    await asyncio.to_thread(environments.python, "onnx")
    data_dir = tmp_path / "data"
    (data_dir / "environments").mkdir(parents=True)
    (data_dir / "environments" / ".uv").symlink_to(environments.folder / ".uv")
    return data_dir


async def cut(service: Service) -> None:
    """End the service as a power cut would, and everything that it started with it."""
    await service.kill()
    for _ in range(250):
        # Whoever died with its parent is gone after a moment; an orphan never is.
        orphans = processes_of(service.data_dir)
        if not orphans:
            return
        await asyncio.sleep(0.02)
    for orphan in orphans:
        orphan.kill()
    pytest.fail(f"left behind: {[orphan.argv for orphan in orphans]}")


async def use(caller: Caller, value: float, known: Acknowledged, environment: str) -> None:
    """Ship one model, noting every answer; ends quietly when the service does."""
    with contextlib.suppress(aiohttp.ClientError, OSError):
        run_id = await caller.upload(shifted(value))
        known.uploaded.add(run_id)
        await caller.post(f"/prepare/start?runId={run_id}")
        known.started.add(run_id)
        prepared = await caller.until(
            f"/prepare/status?runId={run_id}", lambda now: now["phase"] != "Running"
        )
        assert prepared["phase"] == "Succeeded", prepared
        known.prepared.add(run_id)
        path = f"runId={run_id}&env={environment}"
        known.deployed[run_id, environment] = await caller.post(f"/deploy/start?{path}")
        known.deployed[run_id, environment] = await caller.until(
            f"/deploy/status?{path}", lambda now: now["phase"] != "Running"
        )


async def assert_kept(caller: Caller, known: Acknowledged) -> None:
    """Everything acknowledged is there and comes to a good end."""
    listed = {run["runId"] for run in (await caller.get("/runs"))["runs"]}
    assert known.uploaded <= listed
    for run_id in known.started:
        path = f"/prepare/status?runId={run_id}"
        now = await caller.get(path)
        assert_prepare_status(now, run_id)
        assert now["phase"] != "Pending"
        if run_id in known.prepared:
            assert now["phase"] == "Succeeded"
        ended = await caller.until(path, lambda now: now["phase"] != "Running")
        for step in ended["steps"]:
            if step["status"] == "Failed":
                assert_text(step["message"])
                assert step["code"] == "preparation_interrupted"
        assert {step["status"] for step in ended["steps"]} <= {"Succeeded", "Failed", "Pending"}
    for (run_id, environment), before in known.deployed.items():
        now = await caller.until(
            f"/deploy/status?runId={run_id}&env={environment}",
            lambda now: now["phase"] != "Running",
        )
        assert (now["phase"], now["version"]) == ("Succeeded", before["version"]), now
        if "endpoint" in before:
            assert now["endpoint"] == before["endpoint"]
        for base in addresses(now):
            answer = await caller.post(f"{base}/v2/models/{run_id}/infer", json=ZEROS)
            assert answer["model_name"] == run_id


async def test_killed_in_the_middle_of_an_upload_nothing_half_is_left(data_dir: Path) -> None:
    async with running(data_dir) as (service, caller):
        kept = await caller.upload(shifted(1))
        half = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n'
            yield busy(1, width=1024)
            half.set()
            await asyncio.sleep(60)

        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        sending = asyncio.create_task(caller.call("POST", "/upload", data=body(), headers=headers))
        await half.wait()
        async with asyncio.timeout(20):
            while not list((data_dir / "blobs" / "incoming").iterdir()):
                assert not sending.done(), sending.result()
                await asyncio.sleep(0.01)
        await cut(service)
        with pytest.raises(aiohttp.ClientError):
            await sending

        await service.start()

        assert [run["runId"] for run in (await caller.get("/runs"))["runs"]] == [kept]
        assert list((data_dir / "blobs" / "incoming").iterdir()) == []
        assert len(list((data_dir / "blobs").glob("??/*"))) == 1


async def test_killed_right_after_its_answer_an_upload_is_kept(data_dir: Path) -> None:
    async with running(data_dir) as (service, caller):
        known = Acknowledged()
        for value in range(3):
            known.uploaded.add(await caller.upload(shifted(value)))
            await cut(service)
            await service.start()
            await assert_kept(caller, known)
        for run_id in known.uploaded:
            assert (await caller.prepare(run_id))["phase"] == "Succeeded"


@pytest.mark.parametrize("step", ["environment", "load"])
async def test_killed_in_a_step_a_preparation_is_taken_up_again(
    step: str, own_environments: Path
) -> None:
    async with running(own_environments) as (service, caller):
        run_id = await caller.upload(shifted(1))
        await caller.post(f"/prepare/start?runId={run_id}")
        path = f"/prepare/status?runId={run_id}"
        await caller.until(path, lambda now: status_of(now, step) == "Running")
        await cut(service)

        await service.start()

        ended = await caller.until(path, lambda now: now["phase"] != "Running", 120)
        assert_prepare_status(ended, run_id)
        assert (ended["phase"], ended["attempt"]) == ("Succeeded", 1)
        built = [one for one in (own_environments / "environments").iterdir() if one.name[0] != "."]
        assert [(one / "COMPLETE").exists() for one in built] == [True]


def status_of(body: dict[str, Any], name: str) -> str:
    [status] = [step["status"] for step in body["steps"] if step["name"] == name]
    return str(status)


async def test_killed_again_and_again_in_a_preparation_it_fails_with_a_sentence(
    own_environments: Path,
) -> None:
    async with running(own_environments) as (service, caller):
        run_id = await caller.upload(shifted(1))
        path = f"/prepare/status?runId={run_id}"
        first = await caller.post(f"/prepare/start?runId={run_id}")
        assert first["phase"] == "Running"
        kills = 0
        while (await caller.get(path))["phase"] == "Running":
            assert kills < 4
            await cut(service)
            await service.start()
            kills += 1

        ended = await caller.get(path)
        assert_prepare_status(ended, run_id)
        assert ended["phase"] == "Failed"
        [failed] = [step for step in ended["steps"] if step["status"] == "Failed"]
        assert failed["code"] == "preparation_interrupted"
        assert (await caller.prepare(run_id))["phase"] == "Succeeded"


async def test_killed_while_deploying_the_roll_out_goes_on(data_dir: Path) -> None:
    async with running(data_dir) as (service, caller):
        run_id = await caller.upload(shifted(1))
        assert (await caller.prepare(run_id))["phase"] == "Succeeded"
        known = Acknowledged({run_id}, {run_id}, {run_id})
        for environment in ("dev", "prod"):
            known.deployed[run_id, environment] = await caller.post(
                f"/deploy/start?runId={run_id}&env={environment}"
            )
        await cut(service)

        await service.start()

        await assert_kept(caller, known)


async def test_killed_while_serving_deployments_are_back_at_their_addresses(
    data_dir: Path,
) -> None:
    async with running(data_dir) as (service, caller):
        known = Acknowledged()
        for value, environment in ((1, "dev"), (2, "prod")):
            await use(caller, value, known, environment)
        assert {one["phase"] for one in known.deployed.values()} == {"Succeeded"}
        stopped = await caller.upload(shifted(3))
        await caller.prepare(stopped)
        await caller.deploy(stopped)
        await caller.post(f"/deploy/stop?runId={stopped}&env=dev")
        for _ in range(2):
            await cut(service)

            await service.start()

            await assert_kept(caller, known)
            assert len(replicas_of(data_dir)) == 2
            still = await caller.get(f"/deploy/status?runId={stopped}&env=dev")
            assert (still["phase"], still["version"]) == ("Pending", "1")


async def test_killed_at_any_moment_nothing_acknowledged_is_lost(data_dir: Path) -> None:
    chosen = random.Random(SEED)
    known = Acknowledged()
    async with running(data_dir) as (service, caller):
        # A session of its own first: two clients without one would get one each.
        known.uploaded.add(await caller.upload(shifted(0)))
        for kill in range(KILLS):
            moment = chosen.uniform(0, 4)
            sys.stdout.write(f"SEED={SEED}: kill {kill} after {moment:.3f} s\n")
            using = [
                asyncio.create_task(use(caller, 10 * kill + number, known, environment))
                for number, environment in enumerate(("dev", "prod"))
            ]
            await asyncio.sleep(moment)
            await cut(service)
            await asyncio.gather(*using)

            await service.start()

            await assert_kept(caller, known)
        assert await service.stop() == 0
    assert processes_of(data_dir) == []
