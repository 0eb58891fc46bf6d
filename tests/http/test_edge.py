from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import aiohttp
import pytest

from tests.support.toy_edge import ORIGIN, RAISED, Toy, exchange, parsed, running

RUN = "0123456789abcdef" * 2
CYRILLIC = re.compile("[а-яА-Я]")


async def body_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    assert response.content_type == "application/json"
    body = await response.json()
    assert re.fullmatch(r"[a-z][a-z0-9_]+", body["code"])
    assert 0 < len(body["message"]) <= 600
    assert body["requestId"] == response.headers["X-Request-Id"]
    assert "Traceback" not in body["message"]
    return body


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("400", 400),
        ("401", 401),
        ("404", 404),
        ("409", 409),
        ("429", 429),
        ("503", 503),
        ("507", 507),
        ("415", 415),
        ("504", 504),
        ("500", 500),
        ("value", 500),
        ("assert", 500),
    ],
)
async def test_every_raised_error_is_json_with_its_status(kind: str, status: int) -> None:
    assert kind in RAISED
    async with running() as toy, toy.client.get(toy.url(f"/fail/{kind}")) as response:
        body = await body_of(response)
        assert response.status == status
        assert ("Retry-After" in response.headers) == (status in {429, 503})
        assert ("WWW-Authenticate" in response.headers) == (status == 401)
        expected = {400: "body_malformed", 415: "request_refused"}
        expected |= {500: "internal_error", 504: "operation_timed_out"}
        assert body["code"] == expected.get(status, body["code"])
        if status == 500:
            assert "secret" not in await response.text()
        assert toy.observed == [("/fail/{kind}", "GET", status)]


async def test_errors_are_russian_unless_english_is_liked_better() -> None:
    async with running() as toy:
        for header, is_russian in [(None, True), ("", True), ("en", False), ("ru,en;q=0.5", True)]:
            headers = {} if header is None else {"Accept-Language": header}
            async with toy.client.get(toy.url("/nowhere"), headers=headers) as response:
                body = await body_of(response)
                assert response.status == 404
                assert bool(CYRILLIC.search(body["message"])) == is_russian


async def test_a_wrong_method_names_the_right_ones() -> None:
    async with running() as toy, toy.client.delete(toy.url("/deploy")) as response:
        body = await body_of(response)
        assert (response.status, body["code"]) == (405, "method_not_allowed")
        assert "POST" in response.headers["Allow"]
        assert "POST" in body["message"]


async def test_a_body_over_the_limit_is_413() -> None:
    async with running() as toy, toy.client.post(toy.url("/read"), data=b"x" * 1001) as response:
        body = await body_of(response)
        assert (response.status, body["code"]) == (413, "body_too_large")


async def test_errors_of_the_inference_protocol_carry_error_too() -> None:
    async with running() as toy, toy.client.get(toy.url("/dev/v2/models/iris")) as response:
        body = await body_of(response)
        assert body["error"] == body["message"]
    async with running() as toy, toy.client.get(toy.url("/nowhere")) as response:
        assert "error" not in await body_of(response)


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("abc-123", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False)],
)
async def test_a_safe_request_id_is_kept(given: str, *, is_kept: bool) -> None:
    async with running() as toy:
        headers = {"X-Request-Id": given}
        async with toy.client.get(toy.url(f"/poll?runId={RUN}"), headers=headers) as response:
            assert response.status == 200
            assert (response.headers["X-Request-Id"] == given) == is_kept


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "run_id_missing"),
        ("?runId=", "run_id_missing"),
        ("?runId=x", "run_id_malformed"),
        (f"?runId={RUN.upper()}", "run_id_malformed"),
        (f"?runId={RUN}0", "run_id_malformed"),
        (f"?runId={RUN}%0a", "run_id_malformed"),
        ("?runId=%ff%00", "run_id_malformed"),
        (f"?runId={RUN}&runId={RUN}", "parameter_repeated"),
    ],
)
async def test_a_bad_run_id_explains_itself(query: str, code: str) -> None:
    async with running() as toy:
        url = aiohttp.client.URL(toy.url("/poll") + query, encoded=True)
        async with toy.client.get(url) as response:
            body = await body_of(response)
            assert (response.status, body["code"]) == (400, code)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "env_missing"),
        ("?env=", "env_missing"),
        ("?env=nope", "env_unknown"),
        ("?env=dev&env=prod", "parameter_repeated"),
        ("?env=dev&gpuId=", "gpu_id_malformed"),
        ("?env=dev&gpuId=a%20b", "gpu_id_malformed"),
        ("?env=dev&gpuId=a&gpuId=b", "parameter_repeated"),
    ],
)
async def test_a_bad_parameter_explains_itself(query: str, code: str) -> None:
    async with running() as toy, toy.client.post(toy.url("/deploy" + query)) as response:
        body = await body_of(response)
        assert (response.status, body["code"]) == (400, code)
        if code.startswith("env"):
            assert "dev, stage, prod" in body["message"]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 200, None),
        ({"Origin": ORIGIN}, 200, None),
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"}, 200, None),
        ({"Sec-Fetch-Site": "same-origin"}, 200, None),
        ({"Origin": "null"}, 403, "origin_not_allowed"),
        ({"Origin": "http://evil.example"}, 403, "origin_not_allowed"),
        ({"Origin": ORIGIN + ".evil.example"}, 403, "origin_not_allowed"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "cross_site_refused"),
    ],
)
async def test_only_our_pages_change_things(
    headers: dict[str, str], status: int, code: str | None
) -> None:
    async with running() as toy:
        url = toy.url("/deploy?env=dev")
        async with toy.client.post(url, headers=headers) as response:
            assert response.status == status
            if code is not None:
                assert (await body_of(response))["code"] == code
        async with toy.client.get(toy.url(f"/poll?runId={RUN}"), headers=headers) as response:
            assert response.status == 200


async def test_our_own_page_is_no_foreign_origin() -> None:
    async with running() as toy:
        headers = {"Origin": toy.url("")}
        async with toy.client.post(toy.url("/deploy?env=dev"), headers=headers) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
        (b"GET /poll HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /poll HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", 400),
        (b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400),
        (
            b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_no_http_is_refused_in_json(data: bytes, status: int) -> None:
    async with running() as toy:
        code, headers, body = parsed(await exchange(toy, data))
        assert code == status
        assert body["code"] == {400: "http_malformed", 431: "headers_too_large"}[status]
        assert body["requestId"] == headers["x-request-id"]
        assert CYRILLIC.search(body["message"])
        assert "x" * 100 not in body["message"]


async def test_a_request_without_host_is_refused_unless_it_is_http_1_0() -> None:
    async with running() as toy:
        path = f"/poll?runId={RUN}".encode()
        close = b"Connection: close\r\n"
        assert b" 200 " in await exchange(toy, b"GET " + path + b" HTTP/1.0\r\n\r\n")
        for hosts in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
            data = b"GET " + path + b" HTTP/1.1\r\n" + hosts + close + b"\r\n"
            status, _, body = parsed(await exchange(toy, data))
            assert (status, body["code"]) == (400, "http_malformed")


async def test_an_unknown_expectation_is_refused_in_json() -> None:
    async with running() as toy:
        data = (
            b"POST /read HTTP/1.1\r\nHost: localhost\r\nExpect: cake\r\nContent-Length: 0\r\n\r\n"
        )
        status, headers, body = parsed(await exchange(toy, data))
        assert (status, body["code"]) == (417, "expectation_unsupported")
        assert headers["x-request-id"] == body["requestId"]


async def test_a_broken_chunked_body_is_400() -> None:
    async with running() as toy:
        data = (
            b"POST /read HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\nzz\r\n"
        )
        assert parsed(await exchange(toy, data))[0] == 400


async def test_half_a_header_is_answered_408_and_closed() -> None:
    async with running(header_seconds=0.2) as toy:
        status, headers, body = parsed(await exchange(toy, b"GET /poll HTTP/1.1\r\nHost: loc"))
        assert (status, body["code"]) == (408, "headers_too_slow")
        assert headers["connection"] == "close"


async def test_half_a_second_header_on_a_kept_connection_is_closed_too() -> None:
    async with running(header_seconds=0.2) as toy:
        request = f"GET /poll?runId={RUN} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        reader, writer = await toy.raw()
        writer.write(request)
        assert b" 200 " in await reader.readline()
        await reader.readuntil(b"}")
        writer.write(b"GET /po")
        rest = await asyncio.wait_for(reader.read(), 20)
        assert b" 408 " in rest
        writer.close()


async def test_a_begun_header_outlives_the_pause_between_requests() -> None:
    async with running(keepalive_seconds=0.1, header_seconds=0.4) as toy:
        request = f"GET /poll?runId={RUN} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        answer = await exchange(toy, request + b"GET /po")
        assert answer.startswith(b"HTTP/1.1 200 ")
        reader, writer = await toy.raw()
        writer.write(request)
        await reader.readuntil(b"}")
        writer.write(b"GET /po")
        assert b" 408 " in await asyncio.wait_for(reader.read(), 20)
        writer.close()


async def test_a_slowly_written_but_timely_header_is_fine() -> None:
    async with running(header_seconds=5) as toy:
        reader, writer = await toy.raw()
        for part in (b"GET /poll HTTP/1.1\r\n", b"Host: localhost\r\n", b"\r\n"):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        assert b" 400 " in await reader.readline()
        writer.close()


async def test_a_silent_connection_is_answered_and_closed() -> None:
    async with running(silent_seconds=0.1) as toy:
        status, headers, body = parsed(await exchange(toy, b""))
        assert (status, body["code"]) == (408, "connection_silent")
        assert headers["connection"] == "close"
        assert toy.refused == ["connection_silent"]


async def test_a_kept_connection_without_another_request_is_closed_in_silence() -> None:
    async with running(keepalive_seconds=0.1) as toy:
        answer = await exchange(
            toy, f"GET /poll?runId={RUN} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1") == 1


async def test_an_answer_that_breaks_in_the_middle_never_looks_complete() -> None:
    async with running() as toy, toy.client.get(toy.url("/broken")) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_unknown_methods_and_paths_share_one_series() -> None:
    async with running() as toy:
        async with toy.client.request("PROPFIND", toy.url("/coffee")) as response:
            assert response.status == 404
        assert toy.observed == [("unmatched", "OTHER", 404)]


async def test_a_caller_who_hangs_up_is_recorded_not_reported_as_our_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as toy:
        _, writer = await toy.raw()
        writer.write(b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await until(toy)
        assert toy.observed == [("/read", "POST", 499)]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("method", "path", "level", "said"),
    [
        ("POST", "/read", "INFO", {"status": 200}),
        ("GET", "/fail/503", "WARNING", {"status": 503, "code": "nobody_home"}),
        ("GET", "/nowhere?a=b", "INFO", {"status": 404, "code": "path_unknown"}),
        ("PUT", "/read", "INFO", {"status": 405, "code": "method_not_allowed"}),
    ],
)
async def test_a_request_is_logged_with_what_an_operator_looks_for(
    caplog: pytest.LogCaptureFixture, method: str, path: str, level: str, said: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO)
    async with running() as toy:
        async with toy.client.request(method, toy.url(path)) as response:
            assert response.status == said["status"]
        await until(toy)

    (record,) = (one for one in caplog.records if one.name == "server.api.middleware")
    fields = dict(vars(record)["fields"])
    assert record.levelname == level
    assert fields.pop("durationMs") >= 0
    assert fields == {"method": method, "path": path, "client": "127.0.0.1", **said}
    text = " ".join(str(part) for part in (method, path, said["status"], said.get("code")) if part)
    assert record.getMessage().startswith(f"{text} ")


async def until(toy: Toy) -> None:
    async with asyncio.timeout(10):
        while not toy.observed:
            await asyncio.sleep(0.01)
