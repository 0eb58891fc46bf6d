"""The contract of the page on the real service, as far as it needs no model environment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support import contract
from tests.support.contract import MODEL, ask, refusal
from tests.support.service import Caller
from tests.support.shapes import (
    assert_deploy_status,
    assert_prepare_status,
    assert_summary,
)

if TYPE_CHECKING:
    from tests.support.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

service, caller = contract.service, contract.caller

# ── the way of a run


async def test_upload_answers_json_with_the_run_id_and_gives_a_session(caller: Caller) -> None:
    form = aiohttp.FormData()
    form.add_field("file", MODEL, filename="model.onnx")
    answer = await ask(caller, "POST", "/upload", data=form)

    assert answer.status == 200
    assert len(answer.body["runId"]) == 32
    [cookie] = [value for name, value in answer.headers.items() if name == "Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


async def test_a_model_may_be_called_like_a_run_of_ones_own_only(
    service: Service, caller: Caller
) -> None:
    run_id = await caller.upload(MODEL)
    later = await caller.upload(MODEL, model=run_id)
    async with Caller(service.url) as other:
        for name in (run_id, "f" * 32):
            form = aiohttp.FormData({"model": name})
            form.add_field("file", MODEL, filename="model.onnx")
            answer = await ask(other, "POST", "/upload", data=form)
            assert (answer.status, answer.body["code"]) == (400, "model_name_is_run_id")

    # Its name stays his for as long as he has a run of it.
    await caller.call("DELETE", f"/runs/{run_id}")
    await caller.upload(MODEL, model=run_id)
    assert later != run_id


async def test_everything_is_pending_before_it_was_started(caller: Caller) -> None:
    run_id = await caller.upload(MODEL)

    prepared = await caller.get(f"/prepare/status?runId={run_id}")
    assert_prepare_status(prepared, run_id)
    assert prepared["phase"] == "Pending"
    assert {step["status"] for step in prepared["steps"]} == {"Pending"}
    for environment in ("dev", "stage", "prod"):
        deployed = await caller.get(f"/deploy/status?runId={run_id}&env={environment}")
        assert_deploy_status(deployed, run_id, environment)
        assert deployed["phase"] == "Pending"
        assert {"version", "endpoint", "gateway", "startedAt"} & set(deployed) == set()


async def test_a_run_that_was_never_deployed_has_a_summary_of_zeros(caller: Caller) -> None:
    run_id = await caller.upload(MODEL)
    for narrowed in ("", "&env=prod"):
        answer = await ask(caller, "GET", f"/monitor/summary?runId={run_id}{narrowed}")
        assert_summary(answer.body, run_id)
        assert answer.body["red"] == {"rps": 0, "errorsPercent": 0, "p95DurationMs": 0}
        assert answer.body["slo"] == {"availability": 0, "latencyP95Ms": 0}
        assert answer.body["dataStatus"] == "not_deployed"
        assert answer.headers["X-Metrics-Source"] == "embedded"


async def test_without_a_gpu_the_list_is_empty(caller: Caller) -> None:
    run_id = await caller.upload(MODEL)

    assert await caller.get(f"/prepare/gpus?runId={run_id}") == []


async def test_a_burst_of_starts_is_one_preparation_and_after_failure_a_new_one(
    caller: Caller,
) -> None:
    run_id = await caller.upload(MODEL)
    for attempt in (1, 2):
        burst = [caller.post(f"/prepare/start?runId={run_id}") for _ in range(8)]
        for status in await asyncio.gather(*burst):
            assert_prepare_status(status, run_id)
            assert status["attempt"] == attempt
        ended = await caller.until(
            f"/prepare/status?runId={run_id}", lambda status: status["phase"] != "Running", 100
        )
        assert_prepare_status(ended, run_id)
        [failed] = [step for step in ended["steps"] if step["status"] == "Failed"]
        assert (failed["name"], failed["code"]) == ("environment", "packages_offline")


async def test_what_failed_cannot_be_deployed(caller: Caller) -> None:
    run_id = await caller.upload(MODEL)
    path = f"/deploy/start?runId={run_id}&env=dev"
    assert (await refusal(caller, "POST", path))[:2] == (409, "not_prepared")

    path = f"/deploy/stop?runId={run_id}&env=dev"
    assert (await refusal(caller, "POST", path))[:2] == (404, "not_deployed")
    status = await caller.get(f"/deploy/status?runId={run_id}&env=dev")
    assert status["phase"] == "Pending"


async def test_nothing_answers_predictions_where_nothing_is_deployed(caller: Caller) -> None:
    run_id = await caller.upload(MODEL)
    for path in (f"/dev/v2/models/{run_id}", f"/dev/v2/models/{run_id}/ready"):
        assert (await refusal(caller, "GET", path))[:2] == (404, "model_not_deployed")
    answer = await ask(caller, "POST", f"/dev/v2/models/{run_id}/infer", json={"inputs": []})
    assert (answer.status, answer.body["error"]) == (404, answer.body["message"])
    assert (await refusal(caller, "GET", "/nowhere/v2"))[1] == "env_unknown"
