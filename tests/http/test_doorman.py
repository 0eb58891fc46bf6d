"""Who answers on a deployment's address while nobody else is there; any caller may reach it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from server.engines import doorman
from server.engines.doorman import Calls, make_doorman
from server.messages import Messages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POST = b"POST /v2/models/iris/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def standing(*, limit: int = 100) -> AsyncIterator[tuple[int, list[str]]]:
    """Yield a doorman's port and the list of the inferences that he turned away."""
    refused: list[str] = []
    server = make_doorman(Messages(), lambda: refused.append("one"), Calls(limit))
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], refused
        await server.shutdown(1)


async def said(port: int, what: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(what)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "what", [POST, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\r\n\r\n"]
)
async def test_whatever_is_said_the_answer_is_the_same(what: bytes) -> None:
    async with standing() as (port, refused):
        head, _, body = (await said(port, what)).partition(b"\r\n\r\n")

        assert head.startswith((b"HTTP/1.1 503 ", b"HTTP/1.0 503 "))
        assert b"application/json" in head
        assert json.loads(body)["code"] == "replica_absent"
        assert len(refused) == (what == POST)


async def test_silent_callers_end_and_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorman, "CALL_SECONDS", 0.3)
    async with standing(limit=4) as (port, _):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]

        assert b" 503 " in await said(port, POST)
        ended = await asyncio.gather(
            *(asyncio.wait_for(reader.read(), 20) for reader, _ in silent), return_exceptions=True
        )
        assert {type(one) for one in ended} <= {bytes, ConnectionResetError}
        for _, writer in silent:
            writer.close()
