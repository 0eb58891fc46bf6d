"""A machine without processes, open files or an interpreter to give; a database that is held."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.faults.history import RefusedError
from tests.support.faults.judge import ZEROS
from tests.support.faults.share import SECONDS, Record, say, share
from tests.support.faults.stage import BIG, Stage
from tests.support.faults.trials import NAMED, count_calls, fail_at_call
from tests.support.faults.ways import WAYS
from tests.support.faulty_machine.machine import Calls
from tests.support.onnx_files import shifted
from tests.support.processes import replicas_of
from tests.support.shapes import assert_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SECONDS)]

SPAWNING = ("prepare", "prepare without an environment", "deploy", "hand over")
HOLD = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
async def stage(tmp_path: Path, environments: ModelEnvironments) -> AsyncIterator[Stage]:
    async with Stage(tmp_path, environments) as made:
        yield made
    for complaint in made.judge.complaints:
        say(str(complaint))
    assert made.judge.complaints == []


async def refused(stage: Stage, method: str, path: str, **more: Any) -> tuple[int, str]:
    """Ask for something that has to be refused; return its status and code."""
    async with stage.client.caller.http.request(
        method, f"{stage.service.url}{path}", **more
    ) as answer:
        body = await answer.json()
        assert answer.status >= 400, body
        assert_error(body)
        assert int(answer.headers.get("Retry-After", "0")) >= 1
        return answer.status, body["code"]


async def predicts(stage: Stage) -> None:
    """The resident answers as ever."""
    told = stage.client.runs[stage.resident]
    base = told.rollouts["prod"].told["endpoint"]
    answer = await stage.client.caller.post(f"{base}/v2/models/{stage.resident}/infer", json=ZEROS)
    assert answer["outputs"][0]["data"][0] == told.value


async def test_a_process_that_cannot_be_started_is_a_failure_with_a_name(stage: Stage) -> None:
    record = Record(stage)
    trials = [(way, code) for way in WAYS for code in ("EAGAIN", "ENOMEM") if way.name in SPAWNING]
    for way, code in share(trials, 3):
        calls = await count_calls(stage, way, Calls.SPAWN)
        assert calls > 0
        for nth in range(1, calls + 1):
            met = await fail_at_call(stage, way, Calls.SPAWN, getattr(errno, code), nth)
            record.note(f"{way.name}: {code} at start {nth} of {calls}", met=met)
    say(record.sum())


@contextlib.contextmanager
def few_files(pid: int, spare: int) -> Iterator[None]:
    """Let a process open only so many further files."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(open_file.name) for open_file in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + spare, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("spare", [0, 1, 3, 6])
async def test_without_open_files_everything_is_refused_by_name_and_works_afterwards(
    stage: Stage, spare: int
) -> None:
    client, waiting = stage.client, await stage.prepared()
    client.refusals.clear()
    with few_files(stage.service.pid, spare):
        for act in (stage.uploaded, stage.prepared, lambda: client.deploy(waiting)):
            with contextlib.suppress(RefusedError, AssertionError):
                async with asyncio.timeout(60):
                    await act()
        # Who has a connection is served as ever, the prediction at its own address too.
        await client.caller.get("/runs")
        await predicts(stage)
    for refusal in client.refusals:
        assert NAMED.get(refusal.code) == refusal.status, refusal
    for run_id, told in client.runs.items():
        if told.preparing:
            await client.prepare(run_id)
    await client.deploy(waiting)
    await stage.deployed()
    await stage.judge.judge()


async def test_an_environment_without_its_interpreter_is_built_again(stage: Stage) -> None:
    run_id = await stage.deployed()
    [python] = (stage.data_dir / "environments").glob("[0-9a-f]*/bin/python")
    python.unlink()
    for replica in replicas_of(stage.data_dir):
        replica.kill()
    for run, environment in ((run_id, "dev"), (stage.resident, "prod")):
        path = f"/deploy/status?runId={run}&env={environment}"
        await stage.client.caller.until(path, lambda now: now["phase"] == "Running")

    await stage.judge.judge()

    assert python.exists()
    assert stage.client.runs[run_id].rollouts["dev"].is_up


async def test_while_another_program_holds_the_database_changes_are_503_and_all_else_works(
    stage: Stage,
) -> None:
    deployed, prepared, fresh = (
        await stage.deployed(),
        await stage.prepared(),
        await stage.uploaded(),
    )
    under_way = await stage.uploaded()
    await stage.client.start_preparing(under_way, BIG.uuid)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, stage.data_dir / "persephone.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        replicas_of(stage.data_dir)[0].kill()
        answers = await asyncio.gather(
            refused(stage, "POST", "/upload", data={"file": io.BytesIO(shifted(99))}),
            refused(stage, "POST", f"/prepare/start?runId={fresh}"),
            refused(stage, "POST", f"/deploy/start?runId={prepared}&env=dev"),
            refused(stage, "POST", f"/deploy/stop?runId={deployed}&env=dev"),
            refused(stage, "DELETE", f"/runs/{deployed}"),
        )
        assert set(answers) == {(503, "database_busy")}
        shown = await stage.client.caller.get(f"/prepare/status?runId={under_way}")
        assert shown["phase"] in {"Running", "Succeeded"}
        for run_id, environment in ((deployed, "dev"), (stage.resident, "prod")):
            path = f"/deploy/status?runId={run_id}&env={environment}"
            await stage.client.caller.until(path, lambda now: now["phase"] == "Succeeded")
        await predicts(stage)
    finally:
        holder.communicate()

    assert (await stage.client.until_prepared(under_way))["phase"] == "Succeeded"
    await stage.client.deploy(prepared)
    await stage.client.prepare(fresh)
    await stage.client.stop(deployed)
    await stage.judge.judge()
    await stage.service.kill()
    await stage.after_death()
