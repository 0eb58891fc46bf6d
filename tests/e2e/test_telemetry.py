"""What the service tells of itself while a model goes its whole way: logs, histograms, traces."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metrics import names
from server.states import Step
from tests.support.collector import Collector, collecting
from tests.support.onnx_files import shifted
from tests.support.service import Caller, Service, passing

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = pytest.mark.e2e

ZEROS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}
STEPS = {f"step {step}" for step in Step}
INFER = "POST /{env}/v2/models/{name}/infer"


def trace(number: int) -> tuple[str, dict[str, str]]:
    """A trace id, and the headers of a caller whose request is a part of it."""
    trace_id = f"{number:032x}"
    return trace_id, {"traceparent": f"00-{trace_id}-{1:016x}-01"}


async def post(caller: Caller, path: str, headers: dict[str, str], **options: Any) -> Any:
    async with caller.http.post(caller.url + path, headers=headers, **options) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def count(caller: Caller, name: str, **labels: str) -> float:
    """A sample of the service's own metrics."""
    async with caller.http.get(caller.url + "/metrics") as answer:
        text = await answer.text()
    return next(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )


async def test_the_whole_way_of_a_model_can_be_followed(
    environments: ModelEnvironments, tmp_path: Path
) -> None:
    await asyncio.to_thread(environments.python, "onnx")
    data_dir = environments.lend(tmp_path / "data")
    async with collecting() as collector:
        settings = {
            "PERSEPHONE_OTLP_ENDPOINT": collector.url,
            "PERSEPHONE_LOG_FORMAT": "json",
            "PERSEPHONE_LOG_LEVEL": "info",
            "PERSEPHONE_DRAIN_SECONDS": "0.1",
        }
        async with Service(data_dir, settings) as service, passing(service.url) as caller:
            run_id = await the_way(caller, collector)
        lines = [json.loads(line) for line in service.log().splitlines()]
    assert_logs(lines, run_id)


async def the_way(caller: Caller, collector: Collector) -> str:
    run_id = await caller.upload(shifted(1), model="iris")
    preparing, headers = trace(1)
    await post(caller, f"/prepare/start?runId={run_id}", headers)
    assert (await caller.prepare(run_id))["phase"] == "Succeeded"
    deploying, headers = trace(2)
    await post(caller, f"/deploy/start?runId={run_id}&env=prod", headers)
    assert (await caller.deploy(run_id, "prod"))["phase"] == "Succeeded"
    predicting, headers = trace(3)
    await post(caller, "/prod/v2/models/iris/infer", headers, json=ZEROS)
    await assert_promises(caller, run_id)
    stopping, headers = trace(4)
    await post(caller, f"/deploy/stop?runId={run_id}&env=prod", headers)

    await assert_histograms(caller)
    await collector.until(lambda: {"POST /prepare/start", *STEPS} <= collector.names(preparing))
    await collector.until(lambda: "POST /deploy/start" in collector.names(deploying))
    await collector.until(lambda: collector.names(predicting) == {INFER, "gateway hop"})
    done = {"reconcile start", "reconcile admit"}
    await collector.until(lambda: done <= collector.names(deploying))
    await collector.until(lambda: "reconcile stop" in collector.names(stopping))
    assert collector.services == {"persephone"}
    return run_id


async def assert_promises(caller: Caller, run_id: str) -> None:
    """What rules and dashboards measure against is what the run promises."""

    def path_of(found: list[Any]) -> str:
        labels = (one["labels"] for one in found)
        return next((one["__metrics_path__"] for one in labels if one["replica"] == "gateway"), "")

    # What the service says itself is listed with the next scrape.
    path = path_of(await caller.until("/sd", path_of))
    for wanted, change in (("0.999", None), ("0.98", {"prod": {"availability": 98}})):
        if change is not None:
            await caller.call("PUT", f"/runs/{run_id}/slo", json={"objectives": change})
        async with caller.http.get(caller.url + path) as answer:
            lines = (await answer.text()).splitlines()
        assert f"{names.AVAILABILITY_OBJECTIVE} {wanted}" in lines
        assert any(line.startswith(f'{names.LATENCY_OBJECTIVE}{{le="0.5"}} 0.') for line in lines)
        assert {f"{names.ROLLOUT_RESTARTS} 0.0", f"{names.ROLLOUT_FAILED} 0.0"} <= set(lines)


async def assert_histograms(caller: Caller) -> None:
    for step in Step:
        assert await count(caller, names.PREPARE_STEP_DURATION + "_count", step=step) == 1
    for action in ("start", "admit", "stop"):
        while await count(caller, names.RECONCILE_DURATION + "_count", action=action) == 0:
            await asyncio.sleep(0.05)
        assert await count(caller, names.RECONCILE_FAILURES, action=action) == 0
    assert await count(caller, names.DEPLOY_DURATION + "_count", environment="prod") == 1
    assert await count(caller, names.HTTP_DURATION + "_count", route="/prepare/start") >= 1


def assert_logs(lines: list[dict[str, Any]], run_id: str) -> None:
    # Every line of a preparation, a deployment and their requests says which.
    for logger, wanted in (
        ("server.pipeline.observing", {"runId", "requestId", "traceId"}),
        ("server.reconcile.keeper", {"runId", "deploymentId", "requestId", "traceId"}),
        ("server.reconcile.observing", {"runId", "deploymentId", "requestId", "traceId"}),
    ):
        found = [line for line in lines if line["logger"] == logger]
        assert found
        for line in found:
            assert wanted <= set(line), line
            assert line["runId"] == run_id
    requests = [line for line in lines if line["logger"] == "server.api.middleware"]
    changing = [line for line in requests if line["message"].startswith("POST /")]
    assert changing
    for line in changing:
        assert {"requestId", "runId", "traceId"} <= set(line), line
    deploys = [line for line in changing if line["message"].startswith("POST /deploy/")]
    assert {line["deploymentId"] for line in deploys} == {"prod/iris/1"}
