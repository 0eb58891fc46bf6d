"""Hostile models through the whole service: each ends in its own run's failure and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.environments.trees import build_tree
from tests.support import escaping
from tests.support.escaping import Payload, payload
from tests.support.machines import OLD_KERNEL, RECKLESS_SERVICE, without_bubblewrap
from tests.support.nobody import NOBODY, as_nobody, only_as_root
from tests.support.onnx_files import linear
from tests.support.pickle_files import zipped
from tests.support.predictions import addresses
from tests.support.processes import processes_of, replicas_of
from tests.support.service import Caller, Service, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.environments import ModelEnvironments

pytestmark = pytest.mark.e2e

MAKER = Path(__file__).parents[1] / "support" / "make_hostile_torchscript.py"
ROW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
LIMITS = {
    "PERSEPHONE_MODEL_MEMORY_BYTES": str(3 << 30),
    "PERSEPHONE_LOAD_SECONDS": "20",
    "PERSEPHONE_SMOKE_SECONDS": "8",
}
BUNDLE = {
    "persephone.yaml": b"inputs: [{name: x, datatype: FP32, shape: [1]}]\noutputs: [{name: y, datatype: FP32, shape: [1]}]",
    "model.py": b"raise SystemExit",
}
RIDGE = """
import pathlib, pickle, sys
from sklearn.linear_model import Ridge
model = Ridge(alpha=1e-9).fit([[0, 0], [1, 0], [0, 1]], [0, 1, 2])
pathlib.Path(sys.argv[1]).write_bytes(pickle.dumps(model))
"""


@pytest.fixture(params=[3, 2], ids=["level-3", "level-2"])
def level(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def machine(level: int, tmp_path: Path) -> dict[str, str]:
    """Variables under which the service reaches exactly this level."""
    return {**LIMITS, **(without_bubblewrap(tmp_path) if level == 2 else {})}


@pytest.fixture(scope="module")
def ridge(environments: ModelEnvironments, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("ridge")
    environments.run("sklearn", RIDGE, folder / "ridge.pkl", folder=folder)
    return (folder / "ridge.pkl").read_bytes()


@asynccontextmanager
async def serving(
    data_dir: Path, level: int, settings: dict[str, str], module: str
) -> AsyncIterator[tuple[Service, Caller, str]]:
    """A service at a level, with a harmless model deployed that has to answer to the end."""
    async with running(data_dir, settings, module=module) as (service, caller):
        assert (await caller.get("/readyz"))["sandbox"]["level"] == level, service.log()
        run_id, deployed = await caller.ship(linear())
        url = f"{addresses(deployed)[0]}/v2/models/{run_id}/infer"
        yield service, caller, run_id
        assert (await caller.post(url, json=ROW))["outputs"][0]["data"] == [6.25, 2.75]
        assert (await caller.get("/readyz"))["status"] == "ready"
        assert [replica.argv[-1] for replica in replicas_of(data_dir)] != []
        assert not [one for one in processes_of(data_dir) if "prove" in one.argv]


def failed_step(status: dict[str, Any]) -> dict[str, Any]:
    assert status["phase"] == "Failed", status
    [step] = [step for step in status["steps"] if step["status"] == "Failed"]
    return dict(step)


async def test_what_torchs_own_operators_can_do_ends_in_the_runs_failure(
    data_dir: Path,
    tmp_path: Path,
    machine: dict[str, str],
    level: int,
    environments: ModelEnvironments,
) -> None:
    async with serving(data_dir, level, machine, RECKLESS_SERVICE) as (_, caller, healthy):
        models = tmp_path / "models"
        models.mkdir()
        victim = data_dir / "models" / healthy / "model.onnx"
        outside = tmp_path / "outside"
        outside.mkdir()
        outside.chmod(0o777)
        given = (models, data_dir / "persephone.db", victim, outside / "made")
        # As a file: torch compiles what it can read the source of.
        python = await asyncio.to_thread(environments.python, "torchscript")
        command = [python, "-I", "-W", "ignore", MAKER, *given]
        await asyncio.to_thread(subprocess.run, command, check=True)

        async def end_of(path: Path) -> dict[str, Any]:
            run_id = await caller.upload(path.read_bytes())
            status = await caller.prepare(run_id, gpu="cpu")
            # Saving does not look whether the file could be made, so that model goes on without.
            return {} if path.stem == "saves" else failed_step(status)

        paths = sorted(models.glob("*.pt"))
        steps = await asyncio.gather(*map(end_of, paths))
        ends = dict(zip([path.stem for path in paths], steps, strict=True))

        assert ends.pop("saves") == {}
        codes = {name: step["code"] for name, step in ends.items()}
        assert {step["name"] for step in ends.values()} == {"smoke-test"}
        assert codes.pop("loops") == "smoke_test_timed_out"
        assert set(codes) == {"asks", "changes", "makes", "memory", "reads"}
        assert victim.read_bytes() == linear()
        assert list(outside.iterdir()) == []


@only_as_root
def test_torchs_operators_get_nothing_where_the_service_is_not_root(
    environments: ModelEnvironments,
) -> None:
    with tempfile.TemporaryDirectory(dir=escaping.PLACE) as place:
        folder = Path(place)
        models, outside = folder / "models", folder / "outside"
        secret, victim = outside / "secret", outside / "victim"
        for made in (models, outside):
            made.mkdir()
        for file in (secret, victim):
            file.write_bytes(b"secret")
            os.chown(file, NOBODY, NOBODY)
        for opened in (folder, outside):
            opened.chmod(0o777)
        python = environments.python("torchscript")
        command = [python, "-I", "-W", "ignore", MAKER, models, secret, victim, outside / "made"]
        subprocess.run(command, check=True)
        tree = build_tree(folder / "trees", "model_server")
        wanted = ("reads", "changes", "makes", "memory")

        found = as_nobody(python, tree, *(models / f"{name}.pt" for name in wanted))

        assert set(found) == {"2", "3"}
        for ends in found.values():
            assert {name: end["last"]["event"] for name, end in ends.items()} == dict.fromkeys(
                wanted, "failed"
            )
            assert {end["code"] for end in ends.values()} == {1}
        assert victim.read_bytes() == b"secret"
        assert {path.name for path in outside.iterdir()} == {"secret", "victim"}


async def test_a_hostile_pickle_gets_nothing_and_ends_in_its_runs_failure(
    data_dir: Path, tmp_path: Path, machine: dict[str, str], level: int
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    async with serving(data_dir, level, machine, RECKLESS_SERVICE) as (service, caller, healthy):
        [replica] = replicas_of(data_dir)
        given = {
            "data": str(data_dir),
            "own": str(data_dir / "models" / healthy / "model.onnx"),
            "tree": next(arg for arg in map(str, (data_dir / "trees").glob("model_server-*"))),
            "outside": str(outside),
            "service": service.pid,
            "sibling": replica.pid,
            "port": int(caller.url.rsplit(":", 1)[1]),
            "abstract": "nobody-listens",
            "control": str(next((data_dir / "replicas").glob("*/control"))),
            "datagrams": "/dev/log",
            "inherited": -1,
            "folders": ["/tmp", "/dev/shm", str(data_dir / "specs")],
        }

        async def end_of(last: str) -> str:
            run_id = await caller.upload(pickle.dumps(Payload(payload(last))))
            step = failed_step(await caller.prepare(run_id, gpu="cpu"))
            return str(step["code"])

        assert await end_of(f"report({given!r})") == "child_ended"
        assert await end_of("bomb('memory', {})") == "model_memory_exceeded"
        assert await end_of("bomb('processes', {})") in {"pickle_not_loadable", "model_load_failed"}
        assert await end_of(f"bomb('disk', {given!r})") in {
            "pickle_not_loadable",
            "model_load_failed",
        }
        assert await end_of("bomb('processor', {})") == "load_timeout"

        told = [json.loads(line) for line in re.findall(r'child \d+: ({".*})', service.log())]
        met = [line["met"] for line in told if "met" in line]
        assert len(met) > 70
        assert "open" not in met
        assert list(outside.iterdir()) == []
        assert not list(data_dir.rglob("left-behind*"))


async def test_the_level_is_shown_wherever_one_looks(data_dir: Path, tmp_path: Path) -> None:
    settings = without_bubblewrap(tmp_path)
    async with running(data_dir, settings) as (service, caller):
        run_id = await caller.upload(linear())
        status = await caller.prepare(run_id, gpu="cpu")
        async with caller.http.get(caller.url + "/metrics") as answer:
            metrics = await answer.text()
        ready = await caller.get("/readyz")

        assert ready["sandbox"]["level"] == 2
        assert ready["sandbox"]["layers"][:3] == ["landlock", "seccomp", "limits"]
        assert "\npersephone_sandbox_level 2.0\n" in metrics
        assert "(sandbox level 2)" in status["steps"][1]["message"]
        assert "sandbox: not level 3: this bubblewrap has no --size" in service.log()


async def test_no_process_outlives_a_killed_service_without_namespaces_either(
    data_dir: Path, tmp_path: Path, ridge: bytes
) -> None:
    async with running(data_dir, without_bubblewrap(tmp_path)) as (service, caller):
        run_id, _ = await caller.ship(ridge)
        assert len(replicas_of(data_dir)) == 1

        await service.kill()
        async with asyncio.timeout(10):
            while processes_of(data_dir):
                await asyncio.sleep(0.02)

        await service.start()
        path = f"/deploy/status?runId={run_id}&env=dev"
        await caller.until(path, lambda now: now["phase"] == "Succeeded")


async def test_models_that_can_hold_code_are_refused_where_nothing_shuts_them_in(
    data_dir: Path, tmp_path: Path, ridge: bytes
) -> None:
    weak = without_bubblewrap(tmp_path)
    async with running(data_dir, weak, module=OLD_KERNEL) as (service, caller):
        assert (await caller.get("/readyz"))["sandbox"]["level"] == 1
        for content in (ridge, zipped(BUNDLE)):
            run_id = await caller.upload(content)
            step = failed_step(await caller.prepare(run_id, gpu="cpu"))
            assert (step["name"], step["code"]) == ("inspection", "sandbox_too_weak")
        assert "PERSEPHONE_ALLOW_UNSANDBOXED=true" in step["message"]
        await caller.ship(linear())
        assert "models that can hold code are refused" in service.log()

    allowed = {**weak, "PERSEPHONE_ALLOW_UNSANDBOXED": "true"}
    async with running(data_dir, allowed, module=OLD_KERNEL) as (_, caller):
        lenient, _ = await caller.ship(ridge)
        cookies = {cookie.key: cookie.value for cookie in caller.http.cookie_jar}

    # What was deployed while it was allowed is not started once it is not.
    async with running(data_dir, weak, module=OLD_KERNEL) as (_, caller):
        caller.http.cookie_jar.update_cookies(cookies)
        path = f"/deploy/status?runId={lenient}&env=dev"
        ended = await caller.until(path, lambda now: now["phase"] != "Running")
        assert (ended["phase"], ended["code"]) == ("Failed", "sandbox_too_weak")
