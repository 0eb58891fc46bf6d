"""A small application behind the real edge, on a real socket."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
from aiohttp import web
from aiohttp.web_exceptions import HTTPUnsupportedMediaType
from aiohttp.web_protocol import RequestPayloadError

from server.api import parameters
from server.api.edge import make_runner, setup_edge
from server.api.multipart import Pace, defer_continue, open_form
from server.api.replies import reply
from server.api.sessions import ensure_session, session_owner
from server.errors import (
    BusyError,
    ConflictError,
    NotFoundError,
    StorageFullError,
    UnauthenticatedError,
    UnavailableError,
)
from server.messages import Messages
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

ORIGIN = "http://localhost:3000"
MAX_UPLOAD = 3 * 1024 * 1024

RAISED: dict[str, Exception] = {
    "400": RequestPayloadError("cut off"),
    "401": UnauthenticatedError("inference_needs_identification"),
    "404": NotFoundError("run_unknown"),
    "409": ConflictError("not_prepared"),
    "429": BusyError("too_many_uploads"),
    "503": UnavailableError("nobody_home"),
    "507": StorageFullError("disk_full"),
    "504": TimeoutError(),
    "415": HTTPUnsupportedMediaType(),
    "500": RuntimeError("secret /etc/path in here"),
    "value": ValueError("bad"),
    "assert": AssertionError("bad"),
}


class Row(NamedTuple):
    data: str
    expires: float


class MemorySessions:
    """A session store that counts what is asked of it."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.calls: list[str] = []

    async def load(self, key: str) -> Row | None:
        self.calls.append("load")
        return self.rows.get(key)

    async def save(self, key: str, data: str, expires: float) -> None:
        self.calls.append("save")
        self.rows[key] = Row(data, expires)

    async def delete(self, key: str) -> None:
        self.calls.append("delete")
        self.rows.pop(key, None)


@dataclass
class Toy:
    """What a test needs of a running toy application."""

    port: int
    client: aiohttp.ClientSession
    sessions: MemorySessions
    observed: list[tuple[str, str, int]]
    app: web.Application
    refused: list[str] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def raw(self) -> Any:
        return asyncio.open_connection("127.0.0.1", self.port)


def toy_app(pace: Pace | None = None, pause: float = 0.0) -> web.Application:
    app = web.Application(client_max_size=1000)
    settings = Settings()

    async def fail(request: web.Request) -> web.Response:
        raise RAISED[request.match_info["kind"]]

    async def poll(request: web.Request) -> web.Response:
        run_id = parameters.run_id(request)
        return reply({"runId": run_id, "owner": await session_owner(request)})

    async def deploy(request: web.Request) -> web.Response:
        environment = parameters.environment(request, settings)
        return reply({"environment": environment, "gpuId": parameters.gpu_id(request)})

    async def read(request: web.Request) -> web.Response:
        return reply({"bytes": len(await request.read())})

    async def upload(request: web.Request) -> web.Response:
        owner = await ensure_session(request)
        form = await open_form(request, MAX_UPLOAD, pace)
        data = b""
        async for chunk in form.chunks():
            data += chunk
            await asyncio.sleep(pause)
        body = {"bytes": len(data), "name": form.file_name, "model": form.model, "owner": owner}
        return reply(body | {"head": data[:64].hex()})

    async def forget(request: web.Request) -> web.Response:
        from aiohttp_session import get_session

        (await get_session(request)).invalidate()
        return reply({})

    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        raise RuntimeError("in the middle")

    app.router.add_route("GET", "/fail/{kind}", fail)
    app.router.add_get("/poll", poll)
    app.router.add_post("/deploy", deploy)
    app.router.add_post("/read", read)
    app.router.add_post("/upload", upload, expect_handler=defer_continue)
    app.router.add_post("/forget", forget)
    app.router.add_get("/broken", broken)
    app.router.add_get("/{env}/v2/models/{name}", fail_inference)
    return app


async def fail_inference(request: web.Request) -> web.Response:
    raise NotFoundError("model_unknown", name=request.match_info["name"])


@asynccontextmanager
async def running(
    settings: Settings | None = None,
    *,
    pace: Pace | None = None,
    pause: float = 0.0,
    routes: Iterable[web.RouteDef] = (),
    sessions: MemorySessions | None = None,
    **options: Any,
) -> AsyncIterator[Toy]:
    app = toy_app(pace, pause)
    app.add_routes(routes)
    observed: list[tuple[str, str, int]] = []
    refused: list[str] = []
    sessions = sessions or MemorySessions()
    setup_edge(
        app,
        settings or Settings(),
        Messages(),
        sessions,
        lambda route, method, status, _seconds: observed.append((route, method, status)),
        refused.append,
    )
    runner = make_runner(app, shutdown_timeout=1, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
            yield Toy(port, client, sessions, observed, app, refused)
    finally:
        await runner.cleanup()


async def exchange(toy: Toy, data: bytes) -> bytes:
    """Send raw bytes and return all that comes until the server closes."""
    reader, writer = await toy.raw()
    writer.write(data)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


def parsed(answer: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return status, headers (in small letters) and body of an answer that has to be JSON."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    assert headers["content-type"].startswith("application/json")
    return int(lines[0].split()[1]), headers, json.loads(body)
