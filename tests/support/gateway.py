"""The gateway, and replicas that fail in every way they can behind it."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import aiohttp
from aiohttp import web

from server import keys
from server.api import inference, system
from server.api.callers import ATTEMPTS, Attempts
from server.api.edge import make_runner, setup_edge
from server.api.gateway import GATEWAY, Gateway
from server.messages import Messages
from server.records import DeploymentKey
from server.settings import Settings
from server.states import Wanted
from tests.support.tokens import RUN
from tests.support.toy_edge import MemorySessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.pipeline.tokens import Tokens

KEY = DeploymentKey(owner="somebody", model="iris", environment="dev")
INFER = "/dev/v2/models/iris/infer"
ANSWER = b'{"outputs": []}'
HUGE = 64 * 1024 * 1024
PIECE = b"x" * 65536


# ── replicas


class Replica:
    """Answers every prediction; the others of this file fail in the way that they are named for."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.port = 0
        self.targets: list[str] = []
        self.hosts: list[str] = []
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self.address, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                served = 0
                while await self._received(reader) and await self.answer(writer, served):
                    served += 1
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _received(self, reader: asyncio.StreamReader) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        self.targets.append(lines[0].split(" ")[1])
        self.hosts.append(headers["host"])
        self.bodies.append(await reader.readexactly(int(headers.get("content-length", 0))))
        return True

    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        """Answer one request; return whether the connection stays."""
        return await send(writer, 200, ANSWER, {"Content-Type": "application/json"})


async def send(
    writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str]
) -> bool:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()
    return True


class SaysNothing(Replica):
    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        await asyncio.Event().wait()
        return False


class RedirectsElsewhere(Replica):
    def __init__(self, status: int, elsewhere: int) -> None:
        super().__init__()
        self.status = status
        self.elsewhere = f"http://127.0.0.1:{elsewhere}/secrets"

    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        return await send(writer, self.status, b"", {"Location": self.elsewhere})


class SendsHostileHeaders(Replica):
    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Access-Control-Allow-Origin": "https://evil.example",
            "Access-Control-Allow-Credentials": "true",
            "Set-Cookie": "persephone=stolen",
            "Clear-Site-Data": '"*"',
            "Refresh": "0; url=https://evil.example",
            "Service-Worker-Allowed": "/",
            "X-Content-Type-Options": "none",
            "X-Request-Id": "forged",
            "Inference-Header-Content-Length": "17",
            "Retry-After": "2",
        }
        return await send(writer, 200, b"<script>alert(1)</script>", headers)


class ClosesReusedConnections(Replica):
    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        return not served and await super().answer(writer, served)


class IsReplacedByAnother(Replica):
    """Tells whoever comes again over a kept connection that the model is elsewhere by now."""

    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        if not served:
            return await super().answer(writer, served)
        return await send(writer, 421, ANSWER, {"Content-Type": "application/json"})


class BreaksOffHalfway(Replica):
    """Answers the first request of a connection, and of the second one only a part."""

    def __init__(self, part: bytes) -> None:
        super().__init__()
        self.part = part

    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        if not served:
            return await super().answer(writer, served)
        writer.write(self.part)
        await writer.drain()
        return False


class AnswersBeforeTheBody(Replica):
    """Refuses a body that it has not read, and keeps the connection."""

    async def _received(self, reader: asyncio.StreamReader) -> bool:
        self.targets.append((await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1])
        return True

    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        await send(writer, 413, ANSWER, {"Content-Type": "application/json"})
        await asyncio.Event().wait()
        return False


class SendsATrailerWithoutEnd(Replica):
    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(HUGE // len(PIECE)):
                writer.write(PIECE)
                await writer.drain()
        return False


class AnswersTwice(Replica):
    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        other = b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nother"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(ANSWER)}\r\n\r\n".encode())
        writer.write(ANSWER + other)
        await writer.drain()
        return True


class AnswersHugeSlowly(Replica):
    async def answer(self, writer: asyncio.StreamWriter, served: int) -> bool:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {HUGE}\r\n\r\n".encode())
        for _ in range(HUGE // len(PIECE)):
            writer.write(PIECE)
            await writer.drain()
        return True


# ── the service around the gateway


async def _no_text(_target: object) -> None:
    """Scrape a replica that does not answer."""


class Front(NamedTuple):
    port: int
    client: aiohttp.ClientSession
    statuses: list[int]
    refusals: list[Any]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def predict(self, path: str = INFER, **headers: str) -> tuple[int, bytes]:
        async with self.client.post(self.url(path), data=b"{}", headers=headers) as answer:
            return answer.status, await answer.read()

    async def recorded(self, count: int = 1) -> list[int]:
        """Return the statuses on record once there are so many."""
        async with asyncio.timeout(20):
            while len(self.statuses) < count:
                await asyncio.sleep(0.01)
        return self.statuses


@contextlib.asynccontextmanager
async def in_front_of(
    port: int, settings: Settings | None = None, tokens: Tokens | None = None
) -> AsyncIterator[Front]:
    """Run the routes of predictions and of discovery with one deployment, whose port is given."""
    settings = settings or Settings()
    run = SimpleNamespace(owner=KEY.owner, model=KEY.model)
    refusals: list[Any] = []
    replica = SimpleNamespace(
        port=port, spec=SimpleNamespace(run_id="r1", version=1, model={"secret": "s"})
    )
    made: Any = SimpleNamespace(key=KEY, wanted=Wanted.UP, run_id="r1", id="dev/iris/1")
    app = web.Application()
    app[keys.SETTINGS] = settings
    fakes: dict[Any, Any] = {
        keys.STORE: SimpleNamespace(
            deployments_called=lambda name: [made] * (name in {"iris", RUN}), runs={RUN: run}
        ),
        keys.TOKENS: tokens,
        ATTEMPTS: Attempts(),
        keys.RECONCILER: SimpleNamespace(replicas=lambda _key: [replica]),
        keys.SCRAPER: SimpleNamespace(
            refused=refusals.append, targets=list, find=lambda name: name, fresh_text=_no_text
        ),
    }
    for key, fake in fakes.items():
        app[key] = fake
    app[GATEWAY] = Gateway(settings.predict_seconds)
    app.router.add_post("/{env}/v2/models/{name}/infer", inference.forward)
    app.router.add_get("/{env}/v2/models/{name}", inference.forward)
    app.router.add_get("/sd", system.discovery_of_replicas)
    app.router.add_get("/sd/replicas/{target}/metrics", system.replica_metrics)
    statuses: list[int] = []
    setup_edge(
        app, settings, Messages(), MemorySessions(), lambda *seen: statuses.append(int(seen[2]))
    )
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as client:
            yield Front(runner.addresses[0][1], client, statuses, refusals)
    finally:
        await runner.cleanup()
        await app[GATEWAY].close()
