"""The client of Prometheus' API against servers that fail in every way there is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from metrics.client import BuildInfo, MetricsUnavailableError, PrometheusClient
from metrics.promql import READING
from tests.support.prometheus_server import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

NOW = 1_700_000_000.125


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def fails(url: str, **options: float) -> str:
    """Read, expect it to fail, and say the reason."""
    async with aiohttp.ClientSession() as session:
        client = PrometheusClient(session, url, **options)
        with pytest.raises(MetricsUnavailableError) as caught:
            await client.read("run", None, NOW, 60)
    return caught.value.reason


def vector(**values: str) -> dict[str, Any]:
    result = [{"metric": {READING: name}, "value": [NOW, value]} for name, value in values.items()]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


async def test_one_post_brings_all_readings(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append((request.method, request.path, dict(await request.post())))
        answer = vector(rps="2.5", error_rps="0", p95_seconds="NaN", up="1", unknown="3")
        return web.json_response({**answer, "warnings": ["odd"]})

    with caplog.at_level(logging.WARNING):
        async with serving(handler) as url, aiohttp.ClientSession() as session:
            readings = await PrometheusClient(session, url + "/").read("run", "dev", NOW, 3600)

    assert (readings.at, readings.rps, readings.error_rps, readings.up) == (NOW, 2.5, 0, 1)
    assert (readings.p95_seconds, readings.slo_total) == (None, None)
    (method, path, form) = asked[0]
    assert (method, path, len(asked)) == ("POST", "/api/v1/query", 1)
    assert (form["time"], form["timeout"]) == ("1700000000.125", "2s")
    assert "[3600000ms]" in form["query"]
    assert "Prometheus warns: odd" in caplog.text


async def test_an_unknown_run_is_an_empty_answer_and_no_failure() -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.json_response(vector())

    async with serving(handler) as url, aiohttp.ClientSession() as session:
        readings = await PrometheusClient(session, url).read("run", None, NOW)

    assert readings.is_empty


async def test_nobody_listening_is_unavailable() -> None:
    assert "Cannot connect" in await fails(f"http://127.0.0.1:{free_port()}")


async def test_silence_is_unavailable_after_the_timeout() -> None:
    async def handler(_request: web.Request) -> web.Response:
        await silence.wait()
        return web.Response()

    silence = asyncio.Event()
    async with serving(handler) as url:
        assert await fails(url, timeout=0.2) == "no answer within 0.2 s"
        silence.set()


async def test_an_answer_that_breaks_off_is_unavailable() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"status": "succ')
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(handler) as url:
        assert await fails(url)


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (503, "Service Unavailable", "status 503, not JSON"),
        (200, "<html>a proxy's page</html>", "status 200, not JSON"),
        (200, "\xff\xfe", "status 200, not JSON"),
        (302, "", "status 302"),
        (
            422,
            '{"status":"error","errorType":"execution","error":"too many samples"}',
            "status 422 execution too many samples",
        ),
        (200, '{"status":"success"}', "status 200"),
        (200, "[]", "status 200"),
        (200, '{"status":"success","data":null}', "another form"),
        (200, '{"status":"success","data":{"resultType":"matrix","result":[]}}', "a matrix"),
        (200, '{"status":"success","data":{"resultType":"vector","result":[1]}}', "another form"),
        (
            200,
            '{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1]}]}}',
            "another form",
        ),
        (
            200,
            '{"status":"success","data":{"resultType":"vector",'
            '"result":[{"metric":{},"value":[1,"x"]}]}}',
            "another form",
        ),
    ],
)
async def test_an_answer_that_is_none_of_prometheus_is_unavailable(
    status: int, text: str, reason: str
) -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(status=status, body=text.encode("latin-1"))

    async with serving(handler) as url:
        assert reason in await fails(url)


@pytest.mark.parametrize(
    ("version", "prom3"),
    [("2.42.0+ds", False), ("3.0.1", True), ("10.2", True), ("main", False), ("", False)],
)
async def test_the_version_says_whose_semantics_hold(version: str, prom3: bool) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.path == "/api/v1/status/buildinfo"
        return web.json_response({"status": "success", "data": {"version": version}})

    async with serving(handler) as url, aiohttp.ClientSession() as session:
        found = await PrometheusClient(session, url).build_info()

    assert found == BuildInfo(version=version)
    assert found.prom3 is prom3


async def test_build_information_without_a_version_is_unavailable() -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.json_response({"status": "success", "data": []})

    async with serving(handler) as url, aiohttp.ClientSession() as session:
        with pytest.raises(MetricsUnavailableError, match="no version"):
            await PrometheusClient(session, url).build_info()


async def test_it_is_ready_when_its_health_check_says_so() -> None:
    statuses = [200, 503, 302]

    async def handler(request: web.Request) -> web.Response:
        assert request.path == "/-/ready"
        return web.Response(status=statuses.pop(0))

    async with serving(handler) as url, aiohttp.ClientSession() as session:
        client = PrometheusClient(session, url)
        assert [await client.is_ready() for _ in range(3)] == [True, False, False]

    async with aiohttp.ClientSession() as session:
        assert not await PrometheusClient(session, f"http://127.0.0.1:{free_port()}").is_ready()
