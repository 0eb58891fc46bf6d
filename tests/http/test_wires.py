from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from server.model_server.wires import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class Heard:
    """Notes what happens on a wire."""

    def __init__(self) -> None:
        self.wire: Any = None
        self.pieces: list[tuple[bytes, float, float]] = []
        self.events: list[str] = []
        self.lost = asyncio.get_running_loop().create_future()
        self.keeps = False

    def connection_made(self, transport: Wire) -> None:
        self.wire = transport

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)

    def data_arrived(self, data: bytes, now: float, arrived: float) -> None:
        self.pieces.append((data, now, arrived))

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keeps

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def run(make: Callable[[], asyncio.AbstractEventLoop], test: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(asyncio.wait_for(test, 60))


def joined() -> tuple[socket.socket, Heard]:
    client, served = pair()
    heard = Heard()
    Wire(asyncio.get_running_loop(), served, heard)
    return client, heard


@pytest.mark.parametrize("make", LOOPS)
def test_what_waited_while_the_loop_was_busy_is_known_to_have_waited(make: Any) -> None:
    async def test() -> None:
        client, heard = joined()
        for _ in range(500):
            client.send(b"x")
            time.sleep(0.001)
            late = time.perf_counter()
            heard.pieces.clear()
            while not heard.pieces:
                await asyncio.sleep(0)
            _data, now, arrived = heard.pieces[0]
            assert arrived <= now
            # The kernel begins to note times some moments after the first one asked it to.
            if arrived < late:
                break
        else:
            pytest.fail("every piece seemed to arrive as it was read")
        client.close()
        await heard.lost
        assert heard.events == ["eof"]

    run(make, test())


@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize("count", [1, 3, 200])
def test_what_the_kernel_does_not_take_at_once_is_sent_in_order(make: Any, count: int) -> None:
    async def test() -> None:
        client, heard = joined()
        parts = [bytes([number % 251]) * (12_000_000 // count) for number in range(count)]
        heard.wire.writelines(parts)
        assert heard.events == ["pause"]
        assert 0 < heard.wire.get_write_buffer_size() < 12_000_000
        heard.wire.write(b"end")
        heard.wire.close()
        heard.wire.write(b"not any more")
        got = await asyncio.to_thread(_all, client)
        assert got == b"".join(parts) + b"end"
        assert await heard.lost is None
        assert heard.wire.get_write_buffer_size() == 0

    run(make, test())


@pytest.mark.parametrize("make", LOOPS)
def test_a_client_that_said_everything_still_reads_its_answer(make: Any) -> None:
    async def test() -> None:
        client, heard = joined()
        heard.keeps = True
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        while not heard.events:
            await asyncio.sleep(0)
        assert b"".join(data for data, *_ in heard.pieces) == b"question"
        heard.wire.write(b"answer")
        heard.wire.write_eof()
        heard.wire.close()
        assert await asyncio.to_thread(_all, client) == b"answer"
        await heard.lost

    run(make, test())


@pytest.mark.parametrize("make", LOOPS)
def test_nothing_is_read_while_reading_is_paused(make: Any) -> None:
    async def test() -> None:
        client, heard = joined()
        heard.wire.pause_reading()
        heard.wire.pause_reading()
        client.sendall(b"question")
        for _ in range(50):
            await asyncio.sleep(0)
        assert not heard.pieces
        heard.wire.resume_reading()
        while not heard.pieces:
            await asyncio.sleep(0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert isinstance(await heard.lost, ConnectionResetError)
        assert heard.wire.is_closing()
        heard.wire.abort()

    run(make, test())


def _all(client: socket.socket) -> bytes:
    got = b""
    with client:
        while piece := client.recv(1 << 20):
            got += piece
    return got
