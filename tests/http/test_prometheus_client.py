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
from metrics.reading import Question
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
            await client.read("run", [Question(seconds=60)], NOW)
    return caught.value.reason


def entry(name: str, value: str, **labels: str) -> dict[str, Any]:
    return {"metric": {READING: name, **labels}, "value": [NOW, value]}


def vector(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "vector", "result": list(entries)}}


async def test_one_post_brings_the_answers_to_all_questions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append((request.method, request.path, dict(await request.post())))
        answer = vector(
            entry("0.requests", "150", code="2xx"),
            entry("0.requests", "3", code="5xx"),
            entry("0.overloaded", "1"),
            entry("0.durations.0", "NaN"),
            entry("0.durations.1", "0.25"),
            entry("0.good_scrapes", "9"),
            entry("0.scrapes", "12"),
            entry("0.watched", "57.5"),
            entry("0.probes", "7", result="passed"),
            entry("1.requests", "9", code="4xx"),
            entry("unknown", "3"),
            entry("7.unknown", "3"),
        )
        return web.json_response({**answer, "warnings": ["odd"]})

    questions = [
        Question(seconds=60, environment="dev", quantiles=(0.5, 0.95), health=True),
        Question(seconds=3600),
    ]
    with caplog.at_level(logging.WARNING):
        async with serving(handler) as url, aiohttp.ClientSession() as session:
            one, other = await PrometheusClient(session, url + "/").read("run", questions, NOW)

    assert (one.at, one.requests, one.errors, one.client_errors) == (NOW, 153, 3, 0)
    assert (one.overloaded, one.up, one.durations) == (1, 0.75, (None, 0.25))
    assert (one.watched, other.watched) == (57.5, None)
    assert (one.probes_passed, one.probes_failed, one.quick) == (7, 0, None)
    assert (other.seconds, other.requests, other.client_errors, other.up) == (3600, 9, 9, None)
    (method, path, form) = asked[0]
    assert (method, path, len(asked)) == ("POST", "/api/v1/query", 1)
    assert (form["time"], form["timeout"]) == ("1700000000.125", "2s")
    assert "[1h]" in form["query"]
    assert "[1m]" in form["query"]
    assert "Prometheus warns: odd" in caplog.text


async def test_a_series_is_one_query_and_has_an_answer_for_each_moment() -> None:
    asked: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append({"path": request.path, **(await request.post())})
        values = [[NOW + 15, "3"], [NOW + 30, "6"]]
        result = [{"metric": {READING: "0.requests", "code": "2xx"}, "values": values}]
        data = {"resultType": "matrix", "result": result}
        return web.json_response({"status": "success", "data": data})

    async with serving(handler) as url, aiohttp.ClientSession() as session:
        client = PrometheusClient(session, url)
        found = await client.series("run", Question(seconds=60), NOW, NOW + 45, 15)

    assert [reading.at for reading in found] == [NOW, NOW + 15, NOW + 30, NOW + 45]
    assert [reading.requests for reading in found] == [None, 3, 6, None]
    assert len(asked) == 1
    assert (asked[0]["path"], asked[0]["step"]) == ("/api/v1/query_range", "15.000")


async def test_an_unknown_run_is_an_empty_answer_and_no_failure() -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.json_response(vector())

    async with serving(handler) as url, aiohttp.ClientSession() as session:
        [reading] = await PrometheusClient(session, url).read("run", [Question(seconds=60)], NOW)

    assert reading.is_empty


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
