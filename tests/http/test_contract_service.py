"""The rest of the surface on the real service: runs, the service itself, other origins."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support import onnx_files
from tests.support.service import Caller, Service, running, without_gpus
from tests.support.shapes import RUN_ID, assert_error, assert_gpu_options, assert_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = onnx_files.linear()
OURS = "http://localhost:3000"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("surface")
    settings = {
        "PERSEPHONE_OFFER_CPU": "true",
        "PERSEPHONE_MAX_RUNS_PER_OWNER": "200",
        "PERSEPHONE_MAX_RUNS_PER_HOUR": "200",
        **without_gpus(folder),
    }
    async with Service(folder / "data", settings) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def caller(service: Service) -> AsyncIterator[Caller]:
    async with Caller(service.url) as one:
        yield one


def blobs(service: Service) -> list[str]:
    return [path.name for path in (service.data_dir / "blobs").glob("??/*")]


async def test_runs_are_listed_newest_first_and_only_to_their_owner(
    service: Service, caller: Caller
) -> None:
    assert (await caller.get("/runs"))["runs"] == []
    ids = [await caller.upload(MODEL, name=f"{number}.onnx") for number in range(3)]

    listed = await caller.get("/runs")

    assert [run["runId"] for run in listed["runs"]] == ids[::-1]
    assert [run["fileName"] for run in listed["runs"]] == ["2.onnx", "1.onnx", "0.onnx"]
    assert "next" not in listed
    for run in listed["runs"]:
        assert RUN_ID.fullmatch(run["runId"])
        assert run["sizeBytes"] == len(MODEL)
        assert run["preparation"] == "Pending"
        assert run["deployments"] == {}
        assert_time(run["createdAt"])
    async with Caller(service.url) as other:
        assert (await other.get("/runs"))["runs"] == []


async def test_a_long_list_comes_in_pages(caller: Caller) -> None:
    ids = [await caller.upload(MODEL) for _ in range(105)]

    first = await caller.get("/runs")
    second = await caller.get(f"/runs?after={first['next']}")

    assert len(first["runs"]) == 100
    assert [run["runId"] for run in first["runs"] + second["runs"]] == ids[::-1]
    assert "next" not in second


async def test_a_deleted_run_is_gone_with_its_bytes_unless_they_are_shared(
    service: Service, caller: Caller
) -> None:
    content = onnx_files.unary("Tanh")
    first = await caller.upload(content)
    [shared] = [run["sha256"] for run in (await caller.get("/runs"))["runs"]]
    second = await caller.upload(content)
    assert shared in blobs(service)

    assert (await caller.call("DELETE", f"/runs/{first}"))[0] == 200
    assert shared in blobs(service)
    assert (await caller.call("DELETE", f"/runs/{second}"))[0] == 200
    assert shared not in blobs(service)

    for run_id in (first, second):
        for method, path in (
            ("GET", f"/prepare/status?runId={run_id}"),
            ("POST", f"/prepare/start?runId={run_id}"),
            ("GET", f"/deploy/status?runId={run_id}&env=dev"),
            ("GET", f"/monitor/summary?runId={run_id}"),
            ("DELETE", f"/runs/{run_id}"),
        ):
            status, body = await caller.call(method, path)
            assert (status, body["code"]) == (404, "run_unknown"), path
    assert (await caller.get("/runs"))["runs"] == []


async def test_a_page_that_no_run_can_begin_is_refused(caller: Caller) -> None:
    for after in ("", "0", "Z" * 32):
        status, body = await caller.call("GET", f"/runs?after={after}")
        assert (status, body["code"]) == (400, "run_id_malformed"), after


async def test_a_malformed_run_id_cannot_be_deleted(caller: Caller) -> None:
    status, body = await caller.call("DELETE", "/runs/..%2F..%2Fetc")
    assert_error(body)
    assert status in {400, 404}


async def test_the_cpu_is_offered_at_the_end_of_the_list_where_the_operator_wants_it(
    caller: Caller,
) -> None:
    run_id = await caller.upload(MODEL)

    options = await caller.get(f"/prepare/gpus?runId={run_id}")

    assert_gpu_options(options)
    assert [option["id"] for option in options] == ["cpu"]


async def test_the_service_says_that_it_is_alive_ready_and_with_what(caller: Caller) -> None:
    assert (await caller.get("/healthz"))["status"] == "ok"
    ready = await caller.get("/readyz")
    assert ready["status"] == "ready"
    assert ready["sandbox"]["level"] in {1, 2, 3}
    assert "limits" in ready["sandbox"]["layers"]
    assert ready["monitoring"] == {"source": "embedded"}
    assert ready["gpus"]["count"] == 0
    assert ready["environments"] == ["dev", "stage", "prod"]


async def test_its_own_metrics_have_its_own_names(caller: Caller) -> None:
    await caller.get("/healthz")
    async with caller.http.get(caller.url + "/metrics") as answer:
        text = await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain")

    series = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(line.startswith(("persephone_", "process_", "python_")) for line in series)
    assert any('route="/healthz"' in line for line in series)
    assert "persephone_gpu_available 0.0" in series


async def test_discovery_is_empty_while_nothing_is_deployed(caller: Caller) -> None:
    assert await caller.get("/sd") == []
    status, body = await caller.call("GET", "/sd/replicas/nobody/metrics")
    assert (status, body["code"]) == (404, "target_unknown")
    assert_error(body)


async def test_the_reference_names_every_path_of_the_contract(caller: Caller) -> None:
    paths = (await caller.get("/openapi.json"))["paths"]
    assert {
        "/upload",
        "/prepare/start",
        "/prepare/status",
        "/prepare/gpus",
        "/deploy/start",
        "/deploy/status",
        "/monitor/summary",
    } <= set(paths)
    async with caller.http.get(caller.url + "/docs") as page:
        assert (page.status, page.content_type) == (200, "text/html")


async def test_our_page_reads_errors_of_every_kind_and_a_foreign_one_changes_nothing(
    caller: Caller,
) -> None:
    async def asked(method: str, path: str, **headers: str) -> tuple[int, Any, Any]:
        async with caller.http.request(method, caller.url + path, headers=headers) as answer:
            return answer.status, answer.headers, await answer.json()

    for method, path, expected in (
        ("GET", "/prepare/status", 400),
        ("GET", "/nothing", 404),
        ("GET", "/upload", 405),
        ("POST", "/upload", 400),
        ("POST", f"/prepare/start?runId={'0' * 32}", 404),
    ):
        status, headers, body = await asked(method, path, Origin=OURS)
        assert status == expected
        assert headers["Access-Control-Allow-Origin"] == OURS
        assert headers["Access-Control-Allow-Credentials"] == "true"
        assert_error(body)
    for foreign in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
        status, headers, body = await asked("POST", "/upload", **foreign)
        assert (status, body["code"]) == (403, "origin_not_allowed")
        assert "Access-Control-Allow-Origin" not in headers
    status, _, body = await asked("POST", "/upload", **{"Sec-Fetch-Site": "cross-site"})
    assert (status, body["code"]) == (403, "cross_site_refused")
    status, _, body = await asked("GET", "/healthz", Host="evil.example")
    assert status in {403, 421}
    assert_error(body)


# ── start and end


async def refused_start(data_dir: Path, **settings: str) -> str:
    """Try to start the service with settings that it refuses; return its one sentence."""
    code, output = await Service(data_dir, settings).refused()
    assert code != 0
    assert "Traceback" not in output
    [sentence] = [line for line in output.splitlines() if line.startswith("persephone: ")]
    return sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PERSEPHONE_PROT", "8001"),
        ("PERSEPHONE_PORT", "http"),
        ("PERSEPHONE_CORS_ORIGINS", "*"),
        ("PERSEPHONE_CORS_ORIGINS", "http://localhost:3000,null"),
        ("PERSEPHONE_OFFER_CPU", "perhaps"),
        ("PERSEPHONE_ENVIRONMENTS", "dev,metrics"),
        ("PERSEPHONE_COOKIE_SAMESITE", "sometimes"),
    ],
)
async def test_a_setting_that_cannot_be_used_ends_the_start_with_one_sentence(
    name: str, value: str, tmp_path: Path
) -> None:
    assert name in await refused_start(tmp_path / "data", **{name: value})


async def test_one_service_owns_a_data_folder(service: Service) -> None:
    assert "PERSEPHONE_DATA_DIR" in await refused_start(service.data_dir)


async def test_a_port_that_is_taken_is_named(service: Service, tmp_path: Path) -> None:
    port = service.url.rsplit(":", 1)[1]
    assert port in await refused_start(tmp_path / "data", PERSEPHONE_PORT=port)


async def test_all_that_it_says_is_json_if_the_log_is(service: Service, tmp_path: Path) -> None:
    settings = {"PERSEPHONE_LOG_FORMAT": "json", "PERSEPHONE_LOG_LEVEL": "info"}
    async with running(tmp_path / "data", settings) as (other, _):
        assert await other.stop() == 0
        messages = [json.loads(line)["message"] for line in other.log().splitlines()]
    assert messages[-1] == "ended"

    port = service.url.rsplit(":", 1)[1]
    taken = Service(tmp_path / "data", {**settings, "PERSEPHONE_PORT": port})
    code, output = await taken.refused()
    assert code == 1
    (line,) = output.splitlines()
    assert json.loads(line)["level"] == "error"
    assert port in json.loads(line)["message"]


async def test_sigterm_ends_it_with_zero_and_a_restart_knows_runs_and_session(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "data") as (service, caller):
        run_id = await caller.upload(MODEL)

        assert await service.stop() == 0
        await service.start()

        assert [run["runId"] for run in (await caller.get("/runs"))["runs"]] == [run_id]
        assert await service.stop() == 0


async def test_sigterm_with_a_preparation_and_open_connections_ends_with_zero(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "data") as (service, caller):
        run_id = await caller.upload(MODEL)
        await caller.post(f"/prepare/start?runId={run_id}")
        port = int(service.url.rsplit(":", 1)[1])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /upload HTTP/1.1\r\n")

        assert await service.stop() == 0
        writer.close()
