"""Room on the disk with a model that serves: full disks, and environments that are given back."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from typing import TYPE_CHECKING

import pytest

from server import app as app_module
from server import keys
from tests.support.in_process import serving
from tests.support.onnx_files import shifted
from tests.support.processes import replicas_of
from tests.support.service import Caller
from tests.support.small_disk import small_disk
from tests.support.wheels import wheel_links

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = pytest.mark.e2e

ZEROS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}


async def test_a_full_disk_stops_no_prediction_and_no_replica_from_coming_back(
    tmp_path: Path, environments: ModelEnvironments
) -> None:
    await asyncio.to_thread(environments.python, "onnx")
    with small_disk(tmp_path / "small", 64) as disk:
        data_dir = environments.lend(disk.path / "data")
        async with serving(data_dir, wheel_links=tuple(wheel_links().split(","))) as here:
            caller = here.caller
            large = await caller.upload(pickle.dumps(os.urandom(500_000)))
            run_id, deployed = await caller.ship(shifted(1))
            disk.fill()
            assert (await caller.call("POST", "/upload", data=b""))[0] in {400, 507}
            url = f"{deployed['endpoint']}/v2/models/{run_id}/infer"
            for _ in range(5):
                await caller.post(url, json=ZEROS)
                await caller.get(f"/deploy/status?runId={run_id}&env=dev")

            [replica] = replicas_of(data_dir)
            os.kill(replica.pid, signal.SIGKILL)
            while replica.pid in [one.pid for one in replicas_of(data_dir)]:
                await asyncio.sleep(0.01)
            async with Caller(caller.url) as other:
                # Over a fresh connection, which waits for the next replica.
                await other.post(url, json=ZEROS)
            assert len(replicas_of(data_dir)) == 1

            stopped = await caller.post(f"/deploy/stop?runId={run_id}&env=dev")
            assert stopped["phase"] == "Pending"
            for one in (large, run_id):
                assert (await caller.call("DELETE", f"/runs/{one}"))[0] == 200
            disk.clear()
            await caller.upload(shifted(2))


async def test_an_environment_is_kept_for_its_runs_and_replicas_and_then_collected(
    tmp_path: Path, environments: ModelEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(environments.python, "onnx")
    monkeypatch.setattr("server.environments.folders._JUST_USED_SECONDS", -1.0)
    data_dir = tmp_path / "data"
    root = data_dir / "environments"
    root.mkdir(parents=True)
    (root / ".uv").symlink_to(environments.folder / ".uv")
    async with serving(data_dir, wheel_links=tuple(wheel_links().split(","))) as here:
        run_id, _ = await here.caller.ship(shifted(1))
        [built] = root.glob("*/COMPLETE")
        collect = here.app[app_module._ENVIRONMENTS].collect

        def in_use() -> set[str]:
            return app_module.environments_in_use(here.app)

        assert await collect(in_use, 0.0) == 0
        await here.caller.post(f"/deploy/stop?runId={run_id}&env=dev")
        # Prepared, it may be deployed at any moment.
        assert await collect(in_use, 0.0) == 0
        await here.caller.deploy(run_id)

        deleting = asyncio.create_task(here.caller.call("DELETE", f"/runs/{run_id}"))
        while here.app[keys.STORE].runs:
            await asyncio.sleep(0)
        # The run is gone, and its replica is still finishing what it has.
        while here.app[app_module._ENGINE].environments():
            assert await collect(in_use, 0.0) == 0
            await asyncio.sleep(0.01)
        assert (await deleting)[0] == 200
        assert await collect(in_use, 0.0) == 1
        assert not built.exists()
