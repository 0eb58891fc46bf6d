from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

import server
from server.model_server import app, connections, deadlines, listener
from tests.support.model_replica import (
    ROWS,
    RUN,
    Running,
    compiled_messages,
    get,
    head,
    running,
    tensor,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.model_server.messages import Messages

CYRILLIC = re.compile("[а-яА-Я]")


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Messages:
    return compiled_messages(tmp_path_factory.mktemp("locale"))


@pytest.fixture
async def replica(
    messages: Messages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    monkeypatch.setattr(listener, "SWEEP_SECONDS", 0.05)
    async with running(messages, tmp_path) as one:
        yield one


def answer_of(raw: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    top, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = top.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in rest)}
    return int(first.split()[1]), headers, json.loads(body)


async def test_a_prediction_answers_under_both_names_and_echoes_its_id(replica: Running) -> None:
    for name in (RUN, "shop", "shop/versions/3"):
        status, answer = await replica.infer(ROWS, name=name, id="call-1")
        assert status == 200
        assert answer == {
            "model_name": name.split("/")[0],
            "model_version": "3",
            "id": "call-1",
            "outputs": [
                {"name": "twice", "datatype": "FP32", "shape": [2, 2], "data": [2, 4, 6, 9]},
                {"name": "rows", "datatype": "BYTES", "shape": [1], "data": ["2"]},
            ],
        }


async def test_outputs_narrow_and_zero_rows_work(replica: Running) -> None:
    status, answer = await replica.infer([], outputs=[{"name": "rows"}])
    assert status == 200
    assert answer["outputs"] == [{"name": "rows", "datatype": "BYTES", "shape": [1], "data": ["0"]}]


async def test_the_server_and_the_model_describe_themselves(replica: Running) -> None:
    assert await get(replica, "/v2/health/live") == (200, {"live": True})
    assert await get(replica, "/v2/health/ready") == (200, {"ready": True})
    assert await get(replica, "/v2/models/shop/ready") == (200, {"name": "shop", "ready": True})
    status, described = await get(replica, "/v2")
    assert (status, described["version"]) == (200, server.__version__)
    status, described = await get(replica, f"/v2/models/{RUN}")
    assert status == 200
    assert described == {
        "name": RUN,
        "versions": ["3"],
        "platform": "double_double",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [
            {"name": "twice", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "rows", "datatype": "BYTES", "shape": [1]},
        ],
    }


async def test_statistics_of_all_models_are_those_of_the_one(
    messages: Messages, tmp_path: Path, replica: Running
) -> None:
    await replica.infer(ROWS)
    status, of_one = await get(replica, f"/v2/models/{RUN}/stats")
    assert (status, of_one["model_stats"][0]["inference_count"]) == (200, 1)
    for path in ("/v2/models/stats", "/v2/models/stats?verbose=1"):
        assert await get(replica, path) == (200, of_one)
    async with running(messages, tmp_path, names=(RUN, "stats")) as called_so:
        status, described = await get(called_so, "/v2/models/stats")
        assert (status, described["name"], described["versions"]) == (200, "stats", ["3"])


async def test_head_is_answered_like_get_without_a_body(replica: Running) -> None:
    async with replica.client.head(f"{replica.address}/v2/health/ready") as response:
        assert (response.status, await response.read()) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "route_unknown"),
        ("GET", "/metrics", 404, "route_unknown"),
        ("GET", "/v2/", 404, "route_unknown"),
        ("GET", "/v2/models//ready", 404, "route_unknown"),
        ("GET", "/v2/models/shop/else", 404, "route_unknown"),
        ("GET", "/v2/models/other", 404, "model_unknown"),
        ("POST", "/v2/models/other/infer", 404, "model_unknown"),
        ("POST", "/v2/models/shop/versions/9/infer", 404, "model_version_unknown"),
        ("GET", "/v2/models/shop/infer", 405, "method_unsupported"),
        ("DELETE", "/v2/models/shop", 405, "method_unsupported"),
        ("OPTIONS", "/v2", 405, "method_unsupported"),
        ("POST", "/v2/health/ready", 405, "method_unsupported"),
    ],
)
async def test_wrong_addresses_explain_themselves_in_both_languages(
    replica: Running, method: str, path: str, status: int, code: str
) -> None:
    for language, is_russian in (("", True), ("en-US,ru;q=0.5", False), ("fr", True)):
        async with replica.client.request(
            method, replica.address + path, headers={"Accept-Language": language}
        ) as response:
            body = await response.json()
            assert (response.status, body["code"]) == (status, code)
            assert body["error"] == body["message"] != code
            assert bool(CYRILLIC.search(body["message"])) == is_russian
            assert body["requestId"] == response.headers["X-Request-Id"]
            assert "{" not in body["message"]
            assert ("Allow" in response.headers) == (status == 405)
            assert "aiohttp" not in response.headers["Server"]


async def test_a_callers_own_request_id_comes_back(replica: Running) -> None:
    given = {"X-Request-Id": "abc-1"}
    _status, body = await replica.infer(ROWS, name="other", headers=given)
    assert body["requestId"] == "abc-1"
    odd = {"X-Request-Id": "a b<script>"}
    _status, body = await replica.infer(ROWS, name="other", headers=odd)
    assert re.fullmatch("[0-9a-f]{16}", body["requestId"])


async def test_a_wrong_tensor_is_named_with_what_was_expected_and_what_came(
    replica: Running,
) -> None:
    sent = {"inputs": [{**tensor(ROWS), "shape": [1, 4]}]}
    async with replica.client.post(
        f"{replica.address}/v2/models/shop/infer",
        data=json.dumps(sent),
        headers={"Accept-Language": "en"},
    ) as response:
        body = await response.json()
    assert (response.status, body["code"]) == (400, "tensor_shape")
    for part in ('"x"', "[-1, 2]", "[1, 4]"):
        assert part in body["message"]


async def test_huge_names_make_no_huge_messages(replica: Running) -> None:
    inputs = [{**tensor(ROWS), "name": "я" * 5000}]
    _status, body = await replica.infer(ROWS, inputs=inputs)
    assert body["code"] == "tensor_unknown"
    assert len(body["message"]) <= 600


async def test_bodies_that_are_too_large_or_no_json_are_refused(replica: Running) -> None:
    url = f"{replica.address}/v2/models/shop/infer"

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 8192

    for data in (b" " * 70_000, pieces()):
        async with replica.client.post(url, data=data) as response:
            assert (response.status, (await response.json())["code"]) == (413, "request_too_large")
    async with replica.client.post(url, data=b'{"inputs": [NaN]}') as response:
        assert (response.status, (await response.json())["code"]) == (400, "request_not_json")
    for encoding, status, code in (
        ("br", 415, "content_encoding_unsupported"),
        ("gzip", 400, "body_encoding_broken"),
    ):
        async with replica.client.post(
            url, data=b"\x1f\x8b", headers={"Content-Encoding": encoding}
        ) as response:
            assert (response.status, (await response.json())["code"]) == (status, code)
    for length in ("3", "-1", "two", "9" * 30):
        async with replica.client.post(
            url, data=b"{}", headers={app.BINARY_HEADER: length}
        ) as response:
            assert (response.status, (await response.json())["code"]) == (
                400,
                "binary_header_length",
            )


async def test_a_client_that_waits_for_continue_gets_it_or_its_refusal(replica: Running) -> None:
    body = json.dumps({"inputs": [tensor(ROWS)]}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(head(Content_Length=str(len(body)), Expect="100-continue"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()
    raw = await replica.exchange(
        head(Content_Length="9", Expect="a-miracle", Connection="close") + b"123456789"
    )
    assert answer_of(raw)[0] == 417
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(head(Content_Length="900000", Expect="100-continue"))
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413")
    writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_in_json(replica: Running, data: bytes) -> None:
    status, headers, body = answer_of(await replica.exchange(data))
    assert (status, body["code"]) == (400, "request_malformed")
    assert headers["content-type"] == "application/json"


async def test_a_broken_body_is_answered_in_json(replica: Running) -> None:
    raw = await replica.exchange(head(Transfer_Encoding="chunked") + b"zz\r\nabc\r\n")
    status, _headers, body = answer_of(raw)
    assert (status, body["code"]) in {(400, "request_body_broken"), (400, "request_malformed")}


async def test_clients_that_stall_are_told_and_closed(
    replica: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    monkeypatch.setattr(deadlines, "BODY_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    for data in (b"POST /v2/mod", head(Content_Length="100") + b"{"):
        status, headers, body = answer_of(await replica.exchange(data))
        assert (status, body["code"]) == (408, "request_too_slow")
        assert headers["connection"] == "close"
    monkeypatch.setattr(connections, "KEEPALIVE_SECONDS", 0.1)
    assert await replica.exchange(b"") == b""


async def test_empty_lines_keep_no_connection(
    replica: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "KEEPALIVE_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    ended = asyncio.create_task(reader.read())
    for _ in range(250):
        writer.write(b"\r\n")
        await asyncio.wait([ended], timeout=0.02)
    assert ended.done()
    writer.close()


async def test_a_body_that_trickles_is_given_up(
    replica: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "BODY_SLOW_AFTER_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(head(Content_Length="1000"))
    answer = asyncio.create_task(reader.readline())
    while not answer.done():
        writer.write(b" ")
        await asyncio.sleep(0.02)
    assert b" 408 " in await answer
    writer.close()
