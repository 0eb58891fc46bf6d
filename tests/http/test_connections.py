"""Connections on real sockets: too many of them, and callers who do not read or do not send."""

from __future__ import annotations

import asyncio
import gzip
import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from server.api.connections import UNREAD_SECONDS
from server.api.edge import CONNECTIONS
from server.api.multipart import Pace
from server.settings import Settings
from tests.support.service import Service, without_gpus
from tests.support.toy_edge import Toy, exchange, parsed, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

RUN = "0123456789abcdef" * 2
POLL = f"GET /poll?runId={RUN} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
WAIT = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Held:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.number = 0

    async def wait(self, _request: web.Request) -> web.Response:
        self.number += 1
        await self.go_on.wait()
        return web.json_response({})

    async def until(self, number: int) -> None:
        async with asyncio.timeout(10):
            while self.number < number:
                await asyncio.sleep(0.005)


@pytest.fixture
async def opened() -> AsyncIterator[list[Pair]]:
    pairs: list[Pair] = []
    yield pairs
    for _, writer in pairs:
        writer.transport.abort()


async def connect(toy: Toy, opened: list[Pair], local: str = "127.0.0.1") -> Pair:
    pair = await asyncio.open_connection("127.0.0.1", toy.port, local_addr=(local, 0))
    opened.append(pair)
    return pair


async def rest_of(pair: Pair) -> bytes:
    return await asyncio.wait_for(pair[0].read(), 20)


async def count(toy: Toy, number: int) -> None:
    async with asyncio.timeout(10):
        while len(toy.app[CONNECTIONS]) != number:
            await asyncio.sleep(0.005)


async def test_more_busy_connections_than_allowed_are_refused_in_json_and_closed(
    opened: list[Pair],
) -> None:
    held = Held()
    async with running(Settings(max_connections=2), routes=[web.get("/wait", held.wait)]) as toy:
        for _ in range(2):
            (await connect(toy, opened))[1].write(WAIT)
        await held.until(2)
        # With and without a request already sent.
        for data in (b"", POLL):
            status, headers, body = parsed(await exchange(toy, data))
            assert (status, body["code"]) == (503, "connections_exhausted")
            assert headers["connection"] == "close"
            assert int(headers["retry-after"]) > 0
            assert body["requestId"] == headers["x-request-id"]
        assert toy.refused == ["connections_exhausted"] * 2
        held.go_on.set()
        await opened[0][0].readuntil(b"{}")
        opened[0][1].close()
        await count(toy, 1)
        assert parsed(await exchange(toy, POLL))[0] == 200


async def test_one_address_can_have_some_and_others_notice_nothing(opened: list[Pair]) -> None:
    held = Held()
    settings = Settings(max_connections_per_address=2)
    async with running(settings, routes=[web.get("/wait", held.wait)]) as toy:
        for _ in range(2):
            (await connect(toy, opened, "127.0.0.9"))[1].write(WAIT)
        await held.until(2)
        third = await connect(toy, opened, "127.0.0.9")
        status, headers, body = parsed(await rest_of(third))
        assert (status, body["code"]) == (429, "connections_exhausted_for_address")
        assert int(headers["retry-after"]) > 0
        fourth = await connect(toy, opened, "127.0.0.8")
        fourth[1].write(POLL)
        assert parsed(await rest_of(fourth))[0] == 200
        # Everybody on this machine has the same address; that is no single caller.
        assert [parsed(await exchange(toy, POLL))[0] for _ in range(3)] == [200] * 3
        held.go_on.set()


async def test_silent_and_half_sent_requests_keep_nobody_out(opened: list[Pair]) -> None:
    async with running(Settings(max_connections=4)) as toy:
        for number in range(12):
            _, writer = await connect(toy, opened)
            if number % 2:
                writer.write(b"GET /poll HTTP/1.1\r\nHost: loc")
                await writer.drain()
        for _ in range(5):
            assert parsed(await exchange(toy, POLL))[0] == 200
        status, _, body = parsed(await rest_of(opened[0]))
        assert (status, body["code"]) == (503, "connections_exhausted")
        assert set(toy.refused) == {"connections_exhausted"}


async def test_a_kept_connection_makes_room_in_silence(opened: list[Pair]) -> None:
    async with running(Settings(max_connections=1)) as toy:
        first = await connect(toy, opened)
        first[1].write(POLL.replace(b"close", b"keep-alive"))
        await first[0].readuntil(b"}")
        assert parsed(await exchange(toy, POLL))[0] == 200
        assert await rest_of(first) == b""


async def test_all_is_forgotten_with_the_connections(opened: list[Pair]) -> None:
    async with running(Settings(max_connections=3)) as toy:
        for _ in range(3):
            await connect(toy, opened)
        await count(toy, 3)
        for _, writer in opened:
            writer.transport.abort()
        await count(toy, 0)
        assert toy.app[CONNECTIONS]._peers == {}


async def test_a_crowd_of_refused_callers_is_not_held(
    opened: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.protocol._FAREWELLS", 3)
    held = Held()
    async with running(Settings(max_connections=1), routes=[web.get("/wait", held.wait)]) as toy:
        (await connect(toy, opened))[1].write(WAIT)
        await held.until(1)
        crowd = [await connect(toy, opened) for _ in range(10)]
        answers = await asyncio.gather(*(said(pair) for pair in crowd))
        assert sum(answer.startswith(b"HTTP/1.1 503 ") for answer in answers) >= 3
        held.go_on.set()


async def said(pair: Pair) -> bytes:
    try:
        return await rest_of(pair)
    except ConnectionError:
        return b""


async def test_an_answer_that_nobody_reads_ends(opened: list[Pair]) -> None:
    ended = asyncio.Event()

    async def flood(request: web.Request) -> web.StreamResponse:
        try:
            answer = web.StreamResponse()
            await answer.prepare(request)
            while True:
                await answer.write(bytes(65536))
        finally:
            ended.set()

    async with running(routes=[web.get("/flood", flood)]) as toy:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", toy.port))
        sock.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connections = toy.app[CONNECTIONS]
        await count(toy, 1)
        [one] = connections._peers
        async with asyncio.timeout(10):
            while not one.unread_bytes:
                await asyncio.sleep(0.005)
        connections.sweep(0.0)
        assert parsed(await exchange(toy, POLL))[0] == 200
        assert not ended.is_set()
        connections.sweep(UNREAD_SECONDS)
        await asyncio.wait_for(ended.wait(), 20)
        await count(toy, 0)
        sock.close()


async def test_slow_and_stuck_callers_are_all_answered_while_others_notice_nothing(
    opened: list[Pair],
) -> None:
    pace = Pace(idle_seconds=0.3, grace_seconds=0.3, bytes_per_second=1000, whole_seconds=30)
    options: dict[str, Any] = {"header_seconds": 0.4, "silent_seconds": 0.4, "lingering_time": 0.1}
    form = (
        b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        b"--x\r\nContent-Disposition: form-data; name=file; filename=m\r\n\r\nabc"
    )
    chunked = form.replace(b"Content-Length: 90000", b"Transfer-Encoding: chunked").replace(
        b"--x\r\n", b"5\r\n--x"
    )
    stuck = {
        b"": "connection_silent",
        b"G": "headers_too_slow",
        b"GET /poll HTTP/1.1\r\nHost: loc": "headers_too_slow",
        b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Le": "headers_too_slow",
        form: "body_too_slow",
        chunked[: chunked.index(b"5\r\n") + 2]: "body_too_slow",
    }
    async with running(pace=pace, **options) as toy:
        waiting = []
        for data, code in stuck.items():
            pair = await connect(toy, opened)
            pair[1].write(data)
            waiting.append((rest_of(pair), code))
        dripping = await connect(toy, opened)
        drip = asyncio.create_task(send_slowly(dripping[1], form + b"x" * 500))
        for _ in range(20):
            assert parsed(await exchange(toy, POLL))[0] == 200
        for answer, code in waiting:
            status, headers, body = parsed(await answer)
            assert (status, body["code"]) == (408, code)
            assert headers["connection"] == "close"
        assert b" 408 " in await asyncio.wait_for(dripping[0].readuntil(b"}"), 20)
        drip.cancel()
        await asyncio.gather(drip, return_exceptions=True)
        await count(toy, 0)
        assert sorted(toy.refused) == sorted([*stuck.values(), "body_too_slow"])


async def send_slowly(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(len(data)):
        writer.write(data[start : start + 1])
        await asyncio.sleep(0.005 if start > 200 else 0)


async def test_the_whole_body_has_a_deadline(opened: list[Pair]) -> None:
    pace = Pace(whole_seconds=0.2)
    async with running(pace=pace, lingering_time=0.1) as toy:
        pair = await connect(toy, opened)
        pair[1].write(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            b"--x\r\nContent-Disposition: form-data; name=file; filename=m\r\n\r\n"
        )

        async def pump() -> None:
            while True:
                pair[1].write(bytes(1000))
                await asyncio.sleep(0.01)

        pumping = asyncio.create_task(pump())
        answer = await asyncio.wait_for(pair[0].readuntil(b"}"), 20)
        assert b" 408 " in answer
        assert b"body_too_slow" in answer
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


async def test_a_compressed_body_is_refused_or_taken_as_it_is_but_never_inflated() -> None:
    bomb = gzip.compress(bytes(900_000))
    assert len(bomb) < 1000
    async with running() as toy:
        headers = {"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=x"}
        async with toy.client.post(toy.url("/upload"), data=bomb, headers=headers) as response:
            assert response.status == 415
        async with toy.client.post(toy.url("/read"), data=bomb, headers=headers) as response:
            assert (response.status, await response.json()) == (200, {"bytes": len(bomb)})


async def test_a_body_that_nobody_asked_for_is_not_waited_for_long(opened: list[Pair]) -> None:
    async with running(lingering_time=0.1) as toy:
        pair = await connect(toy, opened)
        pair[1].write(
            b"POST /deploy?env=dev HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx"
        )
        assert parsed(await rest_of(pair))[0] == 200
        await count(toy, 0)


async def test_a_thousand_requests_at_once_on_one_connection_are_answered_in_order() -> None:
    async with running() as toy:
        request = POLL.replace(b"Connection: close\r\n", b"")
        answers = await exchange(toy, request * 999 + POLL)
        assert answers.count(b"HTTP/1.1 200 ") == 1000


HALF = (
    b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
)
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def test_the_service_as_it_is_started_bounds_its_connections_too(tmp_path: Path) -> None:
    settings = {
        "PERSEPHONE_MAX_CONNECTIONS": "4",
        "PERSEPHONE_MAX_CONNECTIONS_PER_ADDRESS": "2",
        **without_gpus(tmp_path),
    }
    async with Service(tmp_path / "data", settings) as service:
        port = int(service.url.rsplit(":", 1)[1])
        opened: list[Pair] = []

        async def say(data: bytes, local: str = "127.0.0.1") -> Pair:
            pair = await asyncio.open_connection("127.0.0.1", port, local_addr=(local, 0))
            opened.append(pair)
            pair[1].write(data)
            return pair

        for _ in range(6):
            await say(b"")
        assert parsed(await rest_of(await say(ALIVE)))[0] == 200
        assert parsed(await rest_of(opened[0]))[2]["code"] == "connections_exhausted"

        busy = [await say(HALF, f"127.0.0.{2 + number // 2}") for number in range(4)]
        for local, status, code in [
            ("127.0.0.2", 429, "connections_exhausted_for_address"),
            ("127.0.0.1", 503, "connections_exhausted"),
        ]:
            answer = parsed(await refusal(say, local, status))
            assert (answer[0], answer[2]["code"]) == (status, code)
        for _, writer in busy:
            writer.transport.abort()
        async with asyncio.timeout(20):
            while parsed(await rest_of(await say(ALIVE)))[0] != 200:
                await asyncio.sleep(0.01)
        for _, writer in opened:
            writer.transport.abort()


async def refusal(say: Any, local: str, status: int) -> bytes:
    """Ask until the busy ones are known to be busy; return the refusal."""
    async with asyncio.timeout(20):
        while not (answer := await rest_of(await say(ALIVE, local))).startswith(
            b"HTTP/1.1 %d " % status
        ):
            await asyncio.sleep(0.01)
    return answer
