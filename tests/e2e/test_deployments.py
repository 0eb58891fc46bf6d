"""Deployments over their life: versions, hand-over under load, crashes, stop, deletion."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from metrics import names
from tests.support.onnx_files import shifted
from tests.support.predictions import addresses
from tests.support.processes import processes_of, replicas_of
from tests.support.service import Caller, Service, passing, running
from tests.support.shapes import assert_deploy_status, assert_error, assert_summary
from tests.support.traffic import traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SETTINGS = {"PERSEPHONE_DRAIN_SECONDS": "1"}
ZEROS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    environments: ModelEnvironments, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    await asyncio.to_thread(environments.python, "onnx")
    data_dir = environments.lend(tmp_path_factory.mktemp("deployments") / "data")
    async with Service(data_dir, SETTINGS) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def caller(service: Service) -> AsyncIterator[Caller]:
    async with passing(service.url) as one:
        yield one


async def prepared(caller: Caller, value: float, model: str | None = None) -> str:
    """A run that answers ``value`` to zeros, ready to be deployed."""
    run_id = await caller.upload(shifted(value), model=model)
    status = await caller.prepare(run_id)
    assert status["phase"] == "Succeeded", status
    return run_id


async def predict(caller: Caller, base: str, name: str) -> tuple[int, Any]:
    """Ask for a prediction; the value, or the code of the refusal."""
    status, body = await caller.call("POST", f"{base}/v2/models/{name}/infer", json=ZEROS)
    if status == 200:
        return status, body["outputs"][0]["data"][0]
    assert_error(body)
    assert body["error"] == body["message"]
    return status, body["code"]


def port_of(status: dict[str, Any]) -> int:
    return int(status["endpoint"].rsplit(":", 1)[1])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_three_environments_stand_side_by_side(caller: Caller) -> None:
    run_id = await prepared(caller, 1)
    statuses = [await caller.deploy(run_id, env) for env in ("dev", "stage", "prod")]

    assert len({status["endpoint"] for status in statuses}) == 3
    assert len({status["gateway"] for status in statuses}) == 3
    for status, environment in zip(statuses, ("dev", "stage", "prod"), strict=True):
        assert_deploy_status(status, run_id, environment)
        assert (status["phase"], status["version"], status["servingVersion"]) == (
            ("Succeeded", "1", "1")
        )
    await caller.post(f"/deploy/stop?runId={run_id}&env=stage")
    for status in (statuses[0], statuses[2]):
        for base in addresses(status):
            assert await predict(caller, base, run_id) == (200, 1)
    summary = await caller.get(f"/monitor/summary?runId={run_id}")
    assert_summary(summary, run_id)


async def test_every_roll_out_is_a_new_version_at_the_same_address(caller: Caller) -> None:
    run_id = await prepared(caller, 1)
    first = await caller.deploy(run_id)
    second = await caller.deploy(run_id)

    assert [first["version"], second["version"]] == ["1", "2"]
    assert first["endpoint"] == second["endpoint"]
    assert second["startedAt"] > first["startedAt"]
    assert second["updatedAt"] >= second["startedAt"]
    assert (await caller.deploy(run_id, "prod"))["version"] == "1"


async def test_a_burst_of_clicks_is_one_version(caller: Caller) -> None:
    run_id = await prepared(caller, 1)
    for version in ("1", "2"):
        clicks = [caller.post(f"/deploy/start?runId={run_id}&env=dev") for _ in range(10)]
        answers = await asyncio.gather(*clicks)
        assert {answer["version"] for answer in answers} == {version}
        assert {answer["phase"] for answer in answers} == {"Running"}
        ended = await caller.until(
            f"/deploy/status?runId={run_id}&env=dev", lambda now: now["phase"] != "Running"
        )
        assert (ended["phase"], ended["version"]) == ("Succeeded", version)


async def test_hand_overs_under_load_lose_no_request(caller: Caller) -> None:
    runs = [await prepared(caller, value, model="shared") for value in (1, 2)]
    first = await caller.deploy(runs[0], "prod")
    urls = [f"{base}/v2/models/shared/infer" for base in addresses(first)]

    async with traffic(urls, ZEROS) as load:
        await load.more(100)
        for run_id, version in ((runs[1], "2"), (runs[0], "3"), (runs[0], "4"), (runs[1], "5")):
            status = await caller.deploy(run_id, "prod")
            assert (status["phase"], status["version"]) == ("Succeeded", version), status
            assert status["endpoint"] == first["endpoint"]
            await load.more(200)
        # The last of the old ones ends while the traffic goes on.
        await asyncio.sleep(1.5)

    assert (load.broken, load.refusals) == ({}, {})
    assert set(load.values) == {1, 2}
    assert await predict(caller, first["endpoint"], "shared") == (200, 2)


async def test_a_later_run_of_the_same_model_takes_over_its_address(caller: Caller) -> None:
    older, newer = [await prepared(caller, value, model="taken-over") for value in (1, 2)]
    first = await caller.deploy(older)
    for _ in range(3):
        assert await predict(caller, first["gateway"], "taken-over") == (200, 1)
    second = await caller.deploy(newer)

    assert (second["endpoint"], second["version"]) == (first["endpoint"], "2")
    for base in addresses(second):
        assert await predict(caller, base, "taken-over") == (200, 2)
        assert await predict(caller, base, newer) == (200, 2)
        assert (await predict(caller, base, older))[0] == 404
    replaced = await caller.get(f"/deploy/status?runId={older}&env=dev")
    assert (replaced["phase"], replaced["code"]) == ("Pending", "deploy_replaced")
    assert "2" in replaced["message"]


async def test_two_owners_may_call_their_models_the_same(service: Service, caller: Caller) -> None:
    mine = await caller.deploy(await prepared(caller, 1, model="ours"))
    async with Caller(service.url) as other:
        run_id = await prepared(other, 2, model="ours")
        theirs = await other.deploy(run_id)

        assert (mine["version"], theirs["version"]) == ("1", "1")
        assert mine["endpoint"] != theirs["endpoint"]
        assert await predict(caller, mine["gateway"], "ours") == (200, 1)
        assert await predict(other, theirs["gateway"], "ours") == (200, 2)
        await other.call("DELETE", f"/runs/{run_id}")


async def told(caller: Caller, run_id: str, name: str) -> dict[str, float]:
    """Version -> what Prometheus is told of its roll-out, once the scraper lists it."""

    def own(listed: list[Any]) -> list[dict[str, str]]:
        wanted = (run_id, "gateway")
        labels = (one["labels"] for one in listed)
        return [each for each in labels if (each["run_id"], each["replica"]) == wanted]

    found = {}
    for labels in own(await caller.until("/sd", own)):
        async with caller.http.get(caller.url + labels["__metrics_path__"]) as answer:
            lines = (await answer.text()).splitlines()
        (value,) = (line.split()[1] for line in lines if line.startswith(f"{name} "))
        found[labels["version"]] = float(value)
    return found


async def test_a_version_that_cannot_serve_leaves_the_old_one_in_place(
    service: Service, caller: Caller
) -> None:
    older, newer = [await prepared(caller, value, model="careful") for value in (1, 2)]
    first = await caller.deploy(older)
    [file] = (service.data_dir / "models" / newer).glob("model.*")
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[: len(whole) // 2])

    async with traffic(
        [f"{base}/v2/models/careful/infer" for base in addresses(first)], ZEROS
    ) as load:
        failed = await caller.deploy(newer)
        await load.more(50)

    assert (load.broken, load.refusals, set(load.values)) == ({}, {}, {1})
    assert_deploy_status(failed, newer, "dev")
    assert (failed["phase"], failed["version"], failed["servingVersion"]) == ("Failed", "2", "1")
    assert "1" in failed["message"]
    assert await told(caller, newer, names.ROLLOUT_FAILED) == {"2": 1}
    assert await told(caller, older, names.ROLLOUT_FAILED) == {"1": 0}
    file.write_bytes(whole)
    mended = await caller.deploy(newer)
    assert (mended["phase"], mended["version"]) == ("Succeeded", "3")
    assert await predict(caller, first["endpoint"], "careful") == (200, 2)


async def test_a_first_version_that_cannot_serve_fails_and_its_address_says_so(
    service: Service, caller: Caller
) -> None:
    run_id = await prepared(caller, 1)
    [file] = (service.data_dir / "models" / run_id).glob("model.*")
    file.unlink()

    failed = await caller.deploy(run_id)

    assert failed["phase"] == "Failed"
    assert "servingVersion" not in failed
    assert len(failed["message"]) > 20
    for base in addresses(failed):
        assert (await predict(caller, base, run_id))[0] == 503


async def test_a_killed_replica_is_back_and_the_gateway_never_shows_a_broken_connection(
    service: Service, caller: Caller
) -> None:
    before = {process.pid for process in replicas_of(service.data_dir)}
    run_id = await prepared(caller, 1)
    status = await caller.deploy(run_id)
    [replica] = [one for one in replicas_of(service.data_dir) if one.pid not in before]

    async with traffic([f"{status['gateway']}/v2/models/{run_id}/infer"], ZEROS) as load:
        await load.more(50)
        replica.kill()
        await asyncio.sleep(0.5)
        await load.more(200)

    assert load.broken == {}
    assert {code for code, _ in load.refusals} <= {503}
    assert {name for _, name in load.refusals} <= {"replica_absent", "replica_broke_off"}
    assert await predict(caller, status["endpoint"], run_id) == (200, 1)
    again = await caller.get(f"/deploy/status?runId={run_id}&env=dev")
    assert (again["phase"], again["version"]) == ("Succeeded", "1")


async def test_the_figures_go_on_after_a_crash(service: Service, caller: Caller) -> None:
    before = {process.pid for process in replicas_of(service.data_dir)}
    run_id = await prepared(caller, 1)
    status = await caller.deploy(run_id)
    path = f"/monitor/summary?runId={run_id}"
    for _ in range(2):
        # The second crash comes while a scrape is due: it finds nobody.
        for process in replicas_of(service.data_dir):
            if process.pid not in before:
                process.kill()
        await asyncio.sleep(2.5)
    async with asyncio.timeout(30):
        while await predict(caller, status["gateway"], run_id) != (200, 1):
            await asyncio.sleep(0.1)
    earlier = (await caller.get(path))["red"]["rps"]
    for _ in range(120):
        assert await predict(caller, status["endpoint"], run_id) == (200, 1)

    now = await caller.until(path, lambda now: now["red"]["rps"] > earlier + 1, 15)
    assert now["dataStatus"] == "ok"
    targets = await caller.get("/sd")
    assert [one["labels"]["replica"] for one in targets if one["labels"]["run_id"] == run_id] == [
        "0",
        "gateway",
    ]


async def test_a_crash_loop_ends_as_failed_and_nobody_home_is_said_and_counted(
    service: Service, caller: Caller
) -> None:
    before = {process.pid for process in replicas_of(service.data_dir)}
    run_id = await prepared(caller, 1)
    first = await caller.deploy(run_id)
    path = f"/deploy/status?runId={run_id}&env=dev"
    status = first
    async with asyncio.timeout(100):
        while status["phase"] != "Failed":
            for process in replicas_of(service.data_dir):
                if process.pid not in before:
                    process.kill()
            await asyncio.sleep(0.1)
            status = await caller.get(path)

    assert status["code"] == "crash_loop"
    assert status["version"] == "1"
    assert (await told(caller, run_id, names.ROLLOUT_RESTARTS))["1"] >= 1
    assert await told(caller, run_id, names.ROLLOUT_FAILED) == {"1": 0}
    for base in addresses(status):
        assert (await predict(caller, base, run_id))[0] == 503
        code, body = await caller.call("GET", f"{base}/v2/models/{run_id}")
        assert code == 503
        assert_error(body)
    counted = await caller.until(
        f"/monitor/summary?runId={run_id}", lambda now: now["red"]["rps"] > 0, 15
    )
    assert counted["red"]["errorsPercent"] == 100
    mended = await caller.deploy(run_id)
    assert (mended["phase"], mended["version"]) == ("Succeeded", "2")
    assert await predict(caller, first["endpoint"], run_id) == (200, 1)


async def test_stop_closes_the_address_and_a_new_start_opens_it_again(
    service: Service, caller: Caller
) -> None:
    before = {process.pid for process in replicas_of(service.data_dir)}
    run_id = await prepared(caller, 1)
    first = await caller.deploy(run_id)
    path = f"/deploy/stop?runId={run_id}&env=dev"

    stopped = await caller.post(path)

    assert_deploy_status(stopped, run_id, "dev")
    assert stopped["phase"] == "Pending"
    async with asyncio.timeout(20):
        while {process.pid for process in replicas_of(service.data_dir)} - before:
            await asyncio.sleep(0.05)
    assert not is_open(port_of(first))
    assert await predict(caller, first["gateway"], run_id) == (404, "model_not_deployed")
    status, body = await caller.call("POST", path)
    assert (status, body["code"]) == (404, "not_deployed")

    second = await caller.deploy(run_id)
    assert (second["version"], second["endpoint"]) == ("2", first["endpoint"])
    assert await predict(caller, second["endpoint"], run_id) == (200, 1)


async def test_a_deleted_run_takes_everything_with_it(service: Service, caller: Caller) -> None:
    run_id = await prepared(caller, 41)
    statuses = [await caller.deploy(run_id, env) for env in ("dev", "prod")]
    [run] = (await caller.get("/runs"))["runs"]
    blob = service.data_dir / "blobs" / run["sha256"][:2] / run["sha256"]
    assert blob.exists()

    await caller.call("DELETE", f"/runs/{run_id}")

    assert not blob.exists()
    assert not (service.data_dir / "models" / run_id).exists()
    assert not any(run_id in " ".join(one.argv) for one in processes_of(service.data_dir))
    for status in statuses:
        assert not is_open(port_of(status))
        assert (await predict(caller, status["gateway"], run_id))[0] == 404
    await caller.until("/sd", lambda targets: targets == [])


async def test_a_port_that_another_program_took_is_named_and_the_gateway_still_serves(
    data_dir: Path,
) -> None:
    async with running(data_dir, SETTINGS) as (service, caller):
        run_id = await prepared(caller, 1)
        first = await caller.deploy(run_id)
        await service.stop()
        with socket.create_server(("127.0.0.1", port_of(first)), reuse_port=False):
            await service.start()
            status = await caller.until(
                f"/deploy/status?runId={run_id}&env=dev",
                lambda now: now.get("code") == "port_taken",
            )
            assert str(port_of(first)) in status["message"]
            assert status["endpoint"] == first["endpoint"]
            async with asyncio.timeout(30):
                while await predict(caller, first["gateway"], run_id) != (200, 1):
                    await asyncio.sleep(0.1)
        await service.stop()
        await service.start()
        await caller.until(
            f"/deploy/status?runId={run_id}&env=dev", lambda now: now["phase"] == "Succeeded"
        )
        assert await predict(caller, first["endpoint"], run_id) == (200, 1)


async def test_a_stalled_caller_on_a_deployments_address_keeps_nobody_waiting(
    caller: Caller,
) -> None:
    run_id = await prepared(caller, 1)
    status = await caller.deploy(run_id)
    writers = []
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(status))
        writer.write(b"POST /v2/models/x/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
        writers.append(writer)

    async with aiohttp.ClientSession() as session:
        url = f"{status['endpoint']}/v2/models/{run_id}/infer"
        async with session.post(url, json=ZEROS) as answer:
            assert answer.status == 200
    assert (await caller.deploy(run_id))["phase"] == "Succeeded"
    for writer in writers:
        writer.close()
