"""Monitoring and objectives on the real service, as far as they need no model environment."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support import onnx_files
from tests.support.service import Caller, Service, without_gpus
from tests.support.shapes import assert_error, assert_summary, assert_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = onnx_files.linear()
both_languages = pytest.mark.parametrize("language", ["ru", "en"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("monitoring")
    async with Service(folder / "data", without_gpus(folder)) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def caller(service: Service) -> AsyncIterator[Caller]:
    async with Caller(service.url) as one:
        yield one


async def refused(
    caller: Caller, method: str, path: str, language: str = "en", **more: bytes
) -> tuple[int, str, str]:
    """Ask for something that is refused; return status, code and message."""
    headers = {"Accept-Language": language}
    status, body = await caller.call(method, path, headers=headers, **more)
    assert_error(body, language)
    return status, body["code"], body["message"]


async def test_what_was_never_deployed_has_nothing_to_explain_or_to_draw(caller: Caller) -> None:
    run_id = await caller.upload(MODEL)
    body = await caller.get(f"/monitor/summary?runId={run_id}&window=1h30m&env=dev&explain=true")
    assert_summary(body, run_id)
    assert (body["window"], body["environment"]) == ("1h30m", "dev")
    assert (body["objectives"], body["explain"]) == ([], {})
    assert body["errorsByFault"] == dict.fromkeys(
        ("clientPercent", "modelPercent", "overloadPercent"), 0
    )

    url = f"{caller.url}/monitor/series?runId={run_id}&window=10m&step=30s"
    async with caller.http.get(url) as answer:
        assert answer.headers["X-Metrics-Source"] == "embedded"
        body = await answer.json()
    assert {name: body[name] for name in ("window", "step", "rateWindow")} == {
        "window": "10m",
        "step": "30s",
        "rateWindow": "1m",
    }
    assert [set(point) for point in body["points"]] == [{"at"}] * 20
    times = [assert_time(point["at"]).timestamp() for point in body["points"]]
    assert [later - earlier for earlier, later in pairwise(times)] == [30] * 19


async def test_a_series_has_a_sensible_number_of_points_for_any_window(caller: Caller) -> None:
    run_id = await caller.upload(MODEL)
    for window, step in (("", "1m"), ("&window=30s", "1s"), ("&window=30d", "12h")):
        body = await caller.get(f"/monitor/series?runId={run_id}{window}")
        assert body["step"] == step
        assert 30 <= len(body["points"]) <= 60


@both_languages
@pytest.mark.parametrize(
    ("path", "more", "name"),
    [
        ("summary", "window=5", "window"),
        ("summary", "window=", "window"),
        ("summary", "window=29s", "window"),
        ("summary", "window=31d", "window"),
        ("summary", "window=5m%20", "window"),
        ("summary", "explain=yes", "explain"),
        ("series", "step=0s", "step"),
        ("series", "step=2d", "step"),
        ("series", "window=30d&step=1s", "step"),
        ("series", "window=1m&step=2m", "step"),
    ],
)
async def test_a_window_or_step_that_cannot_be_had_explains_itself(
    path: str, more: str, name: str, language: str, caller: Caller
) -> None:
    run_id = await caller.upload(MODEL)
    status, code, message = await refused(
        caller, "GET", f"/monitor/{path}?runId={run_id}&{more}", language
    )
    assert (status, code) == (400, "parameter_malformed")
    assert name in message


# ── objectives


async def test_objectives_are_those_of_the_settings_until_a_run_has_its_own(
    service: Service, caller: Caller
) -> None:
    run_id = await caller.upload(MODEL)
    path = f"/runs/{run_id}/slo"
    usual = await caller.get(path)
    assert usual["runId"] == run_id
    assert {name: one["availability"] for name, one in usual["objectives"].items()} == {
        "dev": 95,
        "stage": 99,
        "prod": 99.9,
    }
    assert {one["source"] for one in usual["objectives"].values()} == {"settings"}
    assert {one["window"] for one in usual["objectives"].values()} == {"30d"}

    wish = {"objectives": {"prod": {"availability": 99.95, "window": "7d"}}}
    status, own = await caller.call("PUT", path, json=wish)
    assert status == 200
    assert own["objectives"]["prod"] == {
        **usual["objectives"]["prod"],
        "availability": 99.95,
        "window": "7d",
        "source": "run",
    }
    assert own["objectives"]["dev"] == usual["objectives"]["dev"]
    assert await caller.get(path) == own
    # A second one replaces the first.
    status, own = await caller.call("PUT", path, json={"objectives": {"dev": {"latencyShare": 50}}})
    assert own["objectives"]["dev"]["latencyShare"] == 50
    assert own["objectives"]["prod"] == usual["objectives"]["prod"]
    assert await caller.call("DELETE", path) == (200, usual)
    async with Caller(service.url) as other:
        for method in ("GET", "PUT", "DELETE"):
            status, body = await other.call(method, path, json=wish)
            assert (status, body["code"]) == (404, "run_unknown")


@both_languages
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "objectives_malformed"),
        (b"[1]", "objectives_malformed"),
        (b'{"objectives": {"prod": {"availability": 100}}}', "objectives_malformed"),
        (b'{"objectives": {"nowhere": {"availability": 99}}}', "env_unknown"),
    ],
)
async def test_objectives_that_cannot_be_kept_explain_themselves(
    body: bytes, code: str, language: str, caller: Caller
) -> None:
    run_id = await caller.upload(MODEL)
    found = await refused(caller, "PUT", f"/runs/{run_id}/slo", language, data=body)
    assert found[:2] == (400, code)
    one_too_many = await refused(caller, "PUT", f"/runs/{run_id}/slo", data=b" " * 20_000)
    assert one_too_many[:2] == (413, "body_too_large")
    assert (await caller.get(f"/runs/{run_id}/slo"))["objectives"]["prod"]["source"] == "settings"
