"""Several replicas of one deployment: even shares, crashes of some, hand-over of all."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support.onnx_files import busy, shifted
from tests.support.processes import replicas_of
from tests.support.service import Caller, Service, passing
from tests.support.shapes import assert_error
from tests.support.traffic import traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SETTINGS = {"PERSEPHONE_DRAIN_SECONDS": "1", "PERSEPHONE_REPLICAS": "1,stage=2"}
ZEROS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}
CONNECTIONS = 16
FAIR = 1.3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    environments: ModelEnvironments, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    await asyncio.to_thread(environments.python, "onnx")
    data_dir = environments.lend(tmp_path_factory.mktemp("replicas") / "data")
    async with Service(data_dir, SETTINGS) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def caller(service: Service) -> AsyncIterator[Caller]:
    async with passing(service.url) as one:
        yield one


async def prepared(caller: Caller) -> str:
    run_id = await caller.upload(shifted(1))
    status = await caller.prepare(run_id)
    assert status["phase"] == "Succeeded", status
    return run_id


async def answered(caller: Caller, version: str) -> dict[str, int]:
    """How many predictions each replica of a version has answered."""
    found = {}
    for target in await caller.get("/sd"):
        labels = target["labels"]
        if labels["replica"] == "gateway" or labels["version"] != version:
            continue
        async with caller.http.get(f"{caller.url}{labels['__metrics_path__']}") as scraped:
            text = await scraped.text()
        count = re.search(r'inference_requests_total{code="2xx"} (\d+)', text)
        assert count is not None, text
        found[labels["replica"]] = int(count[1])
    return found


async def shares(caller: Caller, version: str, seconds: float) -> list[int]:
    """How many predictions each replica answers within a while."""
    before = await answered(caller, version)
    await asyncio.sleep(seconds)
    after = await answered(caller, version)
    return [count - before.get(replica, 0) for replica, count in after.items()]


@pytest.mark.parametrize("replicas", [2, 4])
async def test_connections_are_spread_evenly(caller: Caller, replicas: int) -> None:
    run_id = await prepared(caller)
    status = await caller.deploy(run_id, replicas=replicas)
    assert (status["replicas"], status["readyReplicas"]) == (replicas, replicas)

    url = f"{status['endpoint']}/v2/models/{run_id}/infer"
    async with traffic([url], ZEROS, clients=CONNECTIONS, pause=0.02) as found:
        await found.more(CONNECTIONS)
        spread = await shares(caller, "1", 3)

    assert len(spread) == replicas
    assert max(spread) <= FAIR * min(spread), spread
    assert not found.broken
    assert not found.refusals


async def test_a_killed_replica_is_replaced_and_gets_its_share_again(
    service: Service, caller: Caller
) -> None:
    run_id = await prepared(caller)
    status = await caller.deploy(run_id, replicas=2)
    url = f"{status['endpoint']}/v2/models/{run_id}/infer"
    async with traffic([url], ZEROS, clients=CONNECTIONS, pause=0.02) as found:
        await found.more(CONNECTIONS)
        replicas_of(service.data_dir)[0].kill()
        short = await caller.until(
            f"/deploy/status?runId={run_id}&env=dev", lambda s: s["readyReplicas"] == 1
        )
        assert (short["phase"], short["code"]) == ("Succeeded", "deploy_short")
        whole = await caller.until(
            f"/deploy/status?runId={run_id}&env=dev", lambda s: s["readyReplicas"] == 2
        )
        assert (whole["code"], whole["version"]) == ("deploy_serving", "1")
        async with asyncio.timeout(30):
            while True:
                spread = await shares(caller, "1", 2)
                if len(spread) == 2 and max(spread) <= FAIR * min(spread):
                    break

    # Only what the killed one had under way is lost, and nobody was told of an error.
    assert found.broken.total() <= CONNECTIONS
    assert not found.refusals


async def test_a_hand_over_from_several_to_several_loses_nothing(caller: Caller) -> None:
    run_id = await prepared(caller)
    status = await caller.deploy(run_id, replicas=2)
    url = f"{status['endpoint']}/v2/models/{run_id}/infer"
    async with traffic([url], ZEROS, clients=CONNECTIONS) as found:
        await found.more(200)
        for version, replicas in (("2", 3), ("3", 1)):
            status = await caller.deploy(run_id, replicas=replicas)
            assert (status["phase"], status["version"]) == ("Succeeded", version)
            assert status["replicas"] == replicas
            await found.more(200)

    assert not found.broken
    assert not found.refusals


async def test_the_settings_say_how_many_replicas_an_environment_has(caller: Caller) -> None:
    run_id = await prepared(caller)
    for environment, replicas in (("dev", 1), ("stage", 2)):
        status = await caller.deploy(run_id, environment)
        assert (status["replicas"], status["readyReplicas"]) == (replicas, replicas)


@pytest.mark.parametrize("value", ["0", "17", "-1", "two", "1.5", "", "9" * 40])
async def test_a_number_of_replicas_that_cannot_be_is_refused(caller: Caller, value: str) -> None:
    run_id = await prepared(caller)
    status, body = await caller.call(
        "POST", f"/deploy/start?runId={run_id}&env=dev&replicas={value}"
    )
    assert (status, body["code"]) == (400, "parameter_malformed")
    assert_error(body)


async def test_replicas_of_a_large_model_share_its_weights(
    caller: Caller, service: Service
) -> None:
    width = 2100
    run_id = await caller.upload(busy(2, width=width))
    assert (await caller.prepare(run_id))["phase"] == "Succeeded"
    model = service.data_dir / "models" / run_id
    [weights] = model.glob("packed/*/weights.bin")
    assert weights.stat().st_size > (model / "model.onnx").stat().st_size

    deployed = await caller.deploy(run_id, replicas=2)
    assert deployed["phase"] == "Succeeded", deployed
    pids = [one.pid for one in replicas_of(service.data_dir)]
    assert len(pids) == 2
    for pid in pids:
        assert "/weights.bin" in Path(f"/proc/{pid}/maps").read_text()
    await _answers_means(caller, deployed, run_id, width)

    # A disk that lost it: the model itself is there.
    weights.with_name("model.onnx").write_bytes(b"no graph")
    deployed = await caller.deploy(run_id)
    assert deployed["phase"] == "Succeeded", deployed
    await _answers_means(caller, deployed, run_id, width)


async def _answers_means(caller: Caller, deployed: Any, run_id: str, width: int) -> None:
    row = [float(number % 7) for number in range(width)]
    asked = {"name": "x", "datatype": "FP32", "shape": [1, width], "data": row}
    url = f"{deployed['endpoint']}/v2/models/{run_id}/infer"
    for _ in range(4):
        body = await caller.post(url, json={"inputs": [asked]})
        assert body["outputs"][0]["data"] == pytest.approx([sum(row) / width] * width, rel=1e-4)
