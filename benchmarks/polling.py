"""Polls of the page against a bare aiohttp handler, with one run in the store and with 1,000.

The service runs with its defaults: sessions, CORS, metrics and logs. The run is deployed and
serves. The bare handler is aiohttp + uvloop + orjson; it gets the very same requests, with the
page's cookie and Origin, and serialises the same answer.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
from common import (
    PAGE_ORIGIN,
    Caller,
    Load,
    cookie_of,
    fastapi_python,
    linear,
    median_ratio,
    program,
    run,
    say,
    scratch,
    service,
    table,
    verdict,
    wrk,
)

if TYPE_CHECKING:
    from pathlib import Path

    from common import Service

ROUNDS = 5
RUNS = 1000
STATUS, SUMMARY = "/prepare/status", "/monitor/summary"

BARE = """
import asyncio, sys, orjson, uvloop
from aiohttp import web
answers = orjson.loads(sys.argv[1])

def handler(payload):
    async def handle(request):
        return web.Response(body=orjson.dumps(payload), content_type="application/json")
    return handle

async def main():
    app = web.Application()
    for path, payload in answers.items():
        app.router.add_get(path, handler(payload))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print("http://127.0.0.1:%d" % runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()

uvloop.run(main())
"""

# Sessions, CORS and metrics as plain ASGI middleware: FastAPI's own kind is several times slower.
FASTAPI = """
import json, socket, sys, time, uvicorn
from fastapi import FastAPI, Request
from prometheus_client import Counter, Histogram
from starlette.middleware.cors import CORSMiddleware
answers = json.loads(sys.argv[1])
app = FastAPI()
requests = Counter("requests", "Requests.", ("route", "method", "code"))
durations = Histogram("durations", "Durations.", ("route",))
sessions = {sys.argv[2]: "owner"}

class Observe:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.perf_counter()
        status = 500
        async def watched(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
        cookie = dict(scope["headers"]).get(b"cookie", b"").decode()
        scope.setdefault("state", {})["owner"] = sessions.get(cookie)
        await self.app(scope, receive, watched)
        requests.labels(scope["path"], scope["method"], str(status)).inc()
        durations.labels(scope["path"]).observe(time.perf_counter() - began)

app.add_middleware(Observe)
app.add_middleware(CORSMiddleware, allow_origins=[sys.argv[3]], allow_credentials=True)

def route(path, payload):
    @app.get(path)
    async def handle(runId: str, request: Request):
        assert request.state.owner == "owner"
        return payload

for path, payload in answers.items():
    route(path, payload)
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print("http://127.0.0.1:%d" % listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False,
    log_level="error")).run(sockets=[listener])
"""


async def fill(caller: Caller, number: int) -> None:
    """Upload so many more models."""
    gate = asyncio.Semaphore(8)

    async def one() -> None:
        async with gate:
            await caller.upload(linear())

    await asyncio.gather(*(one() for _ in range(number)))


class Side:
    """One server under load."""

    def __init__(self, name: str, pid: int, url: str, query: str, cookie: str) -> None:
        self.name = name
        self.query = query
        self.cookie = cookie
        self._pid = pid
        self._url = url
        self._headers = (f"Cookie: {cookie}", f"Origin: {PAGE_ORIGIN}", "Accept-Language: ru")
        self.loads: dict[str, list[Load]] = {STATUS: [], SUMMARY: []}

    async def answer(self, path: str) -> Any:
        headers = dict(header.split(": ", 1) for header in self._headers)
        async with (
            aiohttp.ClientSession() as session,
            session.get(self._url + path + self.query, headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def load(self, path: str) -> None:
        url = self._url + path + self.query
        self.loads[path].append(await wrk(url, self._pid, headers=self._headers))

    def rates(self, path: str) -> list[float]:
        return [load.rps for load in self.loads[path]]

    def row(self, path: str) -> tuple[Any, ...]:
        loads = self.loads[path]
        middle = (
            statistics.median(getattr(load, name) for load in loads) for name in Load.__slots__
        )
        return (path, self.name, *middle)


async def ready(name: str, started: Service, caller: Caller) -> Side:
    run_id, _ = await caller.ship(linear())
    return Side(name, started.pid, started.url, f"?runId={run_id}", cookie_of(caller))


async def measure(few: Side, many: Side, python: Path | None) -> None:
    bodies = {path: await few.answer(path) for path in (STATUS, SUMMARY)}
    text = json.dumps(bodies)
    async with program(sys.executable, "-c", BARE, text) as (pid, url):
        bare = Side("bare aiohttp handler", pid, url, few.query, few.cookie)
        if python is None:
            await rounds([bare, few, many])
            return
        async with program(python, "-c", FASTAPI, text, few.cookie, PAGE_ORIGIN) as (
            fastapi_pid,
            fastapi_url,
        ):
            other = Side(
                "FastAPI carrying the same", fastapi_pid, fastapi_url, few.query, few.cookie
            )
            await rounds([bare, few, many, other])


async def rounds(sides: list[Side]) -> None:
    for number in range(ROUNDS):
        for path in (STATUS, SUMMARY):
            # Back and forth, so that no side always follows the same other one.
            for side in sides if number % 2 else sides[::-1]:
                await side.load(path)
    head = ("poll", "server", "requests/s", "p50 ms", "p99 ms", "server CPU µs/request")
    table(head, [side.row(path) for path in (STATUS, SUMMARY) for side in sides])
    say()
    bare, few, many, *others = sides
    for path in (STATUS, SUMMARY):
        ratio = median_ratio(few.rates(path), bare.rates(path))
        verdict(f"{path} / bare handler", ratio, ">= 0.50", met=ratio >= 0.5)
        ratio = median_ratio(many.rates(path), few.rates(path))
        verdict(f"{path} with {RUNS:,} runs / with 1", ratio, "1.00: flat")
        for other in others:
            ratio = median_ratio(few.rates(path), other.rates(path))
            verdict(f"{path} / FastAPI", ratio, ">= 1.50", met=ratio >= 1.5)


async def main() -> None:
    with scratch() as folder:
        (folder / "one").mkdir()
        (folder / "many").mkdir()
        python = fastapi_python(folder)
        async with (
            service(folder / "one") as (one, caller),
            service(
                folder / "many",
                PERSEPHONE_MAX_RUNS_PER_OWNER=str(RUNS),
                PERSEPHONE_MAX_RUNS_PER_HOUR=str(RUNS),
            ) as (thousand, other),
        ):
            await fill(other, RUNS - 1)
            few = await ready("service, 1 run", one, caller)
            many = await ready(f"service, {RUNS:,} runs", thousand, other)
            await measure(few, many, python)


if __name__ == "__main__":
    run(main)
