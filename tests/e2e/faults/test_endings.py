"""SIGTERM in the middle of everything, a second service, replicas that are killed under load."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.faults.judge import ZEROS
from tests.support.faults.share import SECONDS, SEED, Record, say, share
from tests.support.faults.stage import Stage, quietly
from tests.support.faults.ways import WAYS
from tests.support.onnx_files import busy
from tests.support.processes import processes_of, replicas_of
from tests.support.service import Service
from tests.support.traffic import traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SECONDS)]

LONGEST_SECONDS = 15.0


@pytest.fixture
async def stage(tmp_path: Path, environments: ModelEnvironments) -> AsyncIterator[Stage]:
    async with Stage(tmp_path, environments) as made:
        yield made
    assert made.judge.complaints == []


async def end(stage: Stage) -> float:
    """Ask the service to end; return the seconds that it took."""
    began = time.monotonic()
    assert await asyncio.wait_for(stage.service.stop(), LONGEST_SECONDS) == 0
    assert processes_of(stage.data_dir) == []
    return time.monotonic() - began


async def test_sigterm_in_the_middle_of_anything_ends_with_0_and_loses_nothing(
    stage: Stage,
) -> None:
    chance = random.Random(SEED)
    record = Record(stage)
    longest = 0.0
    ways = [way for way in WAYS if not way.is_restart]
    for way in share([*ways, *ways, *ways], 4):
        act = await way.ready(stage)
        acting = asyncio.create_task(quietly(act))
        moment = chance.uniform(0, 0.8)
        await asyncio.sleep(moment)
        longest = max(longest, await end(stage))
        acting.cancel()
        await asyncio.wait([acting])
        await stage.restart()
        await stage.judge.judge()
        await stage.clear()
        record.note(f"{way.name}: SIGTERM after {moment:.2f} s", met=True)
    say(f"{record.sum()}; the longest end took {longest:.2f} s")


async def test_sigterm_lets_an_upload_that_goes_on_be_answered_and_cuts_one_that_stalls(
    stage: Stage,
) -> None:
    content = busy(1)
    goes_on, stalls = asyncio.Event(), asyncio.Event()

    def form(rest: asyncio.Event, seconds: float) -> AsyncIterator[bytes]:
        async def body() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n'
            yield content[:100_000]
            rest.set()
            await asyncio.sleep(seconds)
            yield content[100_000:]
            yield b"\r\n--b--\r\n"

        return body()

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    caller = stage.client.caller
    answered = asyncio.create_task(
        caller.call("POST", "/upload", data=form(goes_on, 1.5), headers=headers)
    )
    cut = asyncio.create_task(
        caller.call("POST", "/upload", data=form(stalls, 60), headers=headers)
    )
    await goes_on.wait()
    await stalls.wait()
    ending = asyncio.create_task(end(stage))

    status, body = await answered
    assert status == 200
    await ending
    with pytest.raises(aiohttp.ClientError):
        await cut
    await stage.restart()
    listed = {run["runId"]: run for run in (await caller.get("/runs"))["runs"]}
    assert listed[body["runId"]]["sizeBytes"] == len(content)
    await caller.call("DELETE", f"/runs/{body['runId']}")
    await stage.judge.judge()


def heeds_sigterm(pid: int) -> bool:
    """Whether a process has said what it does with SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))


async def test_sigterm_before_the_service_is_ready_ends_it_with_0(
    tmp_path: Path, environments: ModelEnvironments
) -> None:
    chance = random.Random(SEED)
    service = Service(environments.lend(tmp_path / "data"))
    for _ in range(4):
        await service.launch()
        async with asyncio.timeout(60):
            while not heeds_sigterm(service.pid):
                await asyncio.sleep(0.005)
        await asyncio.sleep(chance.uniform(0, 1))
        assert await asyncio.wait_for(service.stop(), LONGEST_SECONDS) == 0
        assert processes_of(service.data_dir) == []


async def test_a_second_service_on_the_same_data_folder_refuses_to_start(
    stage: Stage, tmp_path: Path
) -> None:
    other_name = tmp_path / "other-name"
    other_name.symlink_to(stage.data_dir)
    for folder in (stage.data_dir, other_name):
        code, said = await Service(folder).refused()
        assert code == 2
        assert "another service is running" in said
    await stage.judge.judge()


async def test_replicas_killed_under_load_serve_again_and_only_their_own_callers_notice(
    stage: Stage,
) -> None:
    clients = 4
    told = stage.client.runs[stage.resident]
    status = told.rollouts["prod"].told
    urls = [f"{status[name]}/v2/models/{stage.resident}/infer" for name in ("endpoint", "gateway")]
    times = []
    kills = 3
    async with traffic(urls, ZEROS, clients=clients, pause=0.01) as load:
        await load.more(100)
        for _ in range(kills):
            [replica] = replicas_of(stage.data_dir)
            replica.kill()
            began = time.monotonic()
            await load.more(1)
            while (await _answer(urls[0])) != told.value:
                await asyncio.sleep(0.01)
            times.append(time.monotonic() - began)
            await load.more(200)
    say(
        f"{kills} replicas killed under load: serving again after "
        f"{', '.join(f'{seconds:.2f}' for seconds in times)} s; {load.answered} answered, "
        f"{load.broken.total()} connections broken, {load.refusals.total()} refused"
    )
    # Who was connected to the killed one, at its own address; the gateway answers for it.
    assert load.broken.total() <= kills * clients
    assert {code for code, _ in load.refusals} <= {503}
    assert set(load.values) == {told.value}
    await stage.judge.judge()


async def _answer(url: str) -> float | None:
    async with aiohttp.ClientSession() as session:
        try:
            async with session.post(url, json=ZEROS) as answer:
                body = await answer.json()
        except (aiohttp.ClientError, OSError):
            return None
    return body["outputs"][0]["data"][0] if answer.status == 200 else None
