"""Replicas under the control of their models: any bytes on every channel to the service."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MOST_BYTES = 32 * 1024 * 1024
"""Nobody reads so much of an endless answer; the sockets' buffers are smaller by far."""

# ── what is said over HTTP

STATUSES = [
    *(
        "HTTP/1.1 200 OK",
        "HTTP/1.1 500 No",
        "HTTP/1.1 404 No",
        "HTTP/1.1 204 None",
        "HTTP/1.0 200 O",
    ),
    *("HTTP/1.1 100 Continue", "HTTP/1.1 101 Switching", "HTTP/1.1 103 Hints", "HTTP/1.1 304 Same"),
    *("HTTP/1.1 421 Elsewhere", "HTTP/1.1 307 There", "HTTP/1.1 099 A", "HTTP/1.1 999 A"),
    *(
        "HTTP/1.1 -1 A",
        "HTTP/1.1 20",
        "HTTP/9.9 200 OK",
        "HTTP/2 200",
        "ICY 200 OK",
        "GET / HTTP/1.1",
    ),
]
HEADERS = [
    *("Content-Length: 0", "Content-Length: 2", "Content-Length: 5", "Content-Length: -1"),
    *("Content-Length: 99999999", "Content-Length: 18446744073709551615", "Content-Length: 2, 2"),
    *("Content-Length: " + "9" * 5000, "Content-Length: 0x2", "Transfer-Encoding: chunked"),
    *("Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity", "Connection: close"),
    *(
        "Connection: keep-alive",
        "Connection: upgrade",
        "Upgrade: websocket",
        "Content-Encoding: gzip",
    ),
    *("Content-Encoding: deflate, br", "Content-Type: application/json", "Content-Type: text/html"),
    *("Content-Type: \xff", "Location: http://127.0.0.1:1/", "Set-Cookie: persephone=stolen"),
    *(
        "Retry-After: \xe9",
        "Retry-After: " + "9" * 7000,
        "Vary: *",
        "Allow: a\x01b",
        "X\0: a",
        ": a",
    ),
    *("Inference-Header-Content-Length: 99", "Trailer: X", "X: " + "a" * 9000, " folded"),
]
CHUNKS = [
    b"2\r\n{}\r\n",
    b"1\r\n \r\n",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"-1\r\n",
    b"ffffffffffffffff\r\n",
]
ODD_JSON = [
    *("{}", "[]", "null", '{"loaded": 1}', '{"used": null}', '{"used": [1, [2], "x"]}', "{" * 3000),
    *(
        '{"accepting": NaN}',
        '{"accepting": "no"}',
        '{"loaded": true, "a": 1e999}',
        '{"a": 1' + "0" * 5000,
    ),
    *(
        '{"code": "onnx_invalid"}',
        '{"code": "x", "params": {"refused": 1}}',
        '{"code": "internal_error"}',
    ),
    '{"code": "load_timeout", "params": {"seconds": [[[]]], "permanent": 1, "a\\ud800": "\\ud800"}}',
    '{"code": "replica_ended", "evidence": {"x": 1}, "params": {"reason": "/etc/passwd\\u0000"}}',
]
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
ENDLESS = [
    INTERIM * 100,
    b"X: y\r\n" * 1000,
    b"a" * 9000,
    b"1\r\nx\r\n" * 1000,
    b"1;" + b"e" * 9000 + b"\r\nx\r\n",
]


def _head(status: str, headers: list[str]) -> bytes:
    return "\r\n".join([status, *headers, "", ""]).encode("latin-1")


def _whole(text: str) -> bytes:
    body = text.encode()
    kind = "Content-Type: application/json"
    return _head("HTTP/1.1 200 OK", [kind, f"Content-Length: {len(body)}"]) + body


pieces = st.one_of(
    st.builds(_head, st.sampled_from(STATUSES), st.lists(st.sampled_from(HEADERS), max_size=4)),
    st.sampled_from(CHUNKS),
    st.builds(_whole, st.sampled_from(ODD_JSON)),
    st.binary(max_size=64),
    st.just(INTERIM),
)


@dataclass(frozen=True)
class Script:
    """What a connection is told, and how it goes on after that."""

    said: bytes
    endless: bytes | None
    reads: bool
    end: str


scripts = st.builds(
    Script,
    st.lists(pieces, max_size=5).map(b"".join),
    st.none() | st.none() | st.sampled_from(ENDLESS),
    st.booleans(),
    st.sampled_from(["close", "abort", "silence"]),
)


class Hostile:
    """Plays one script to whoever connects."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[Any]] = set()
        self.most_written = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # Ended by us, which asyncio's streams take for a failure.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._play(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._script.reads:
            await reader.read(65536)
        written = len(self._script.said)
        writer.write(self._script.said)
        await writer.drain()
        while self._script.endless is not None and written < MOST_BYTES:
            writer.write(self._script.endless)
            await writer.drain()
            written += len(self._script.endless)
            self.most_written = max(self.most_written, written)
        if self._script.end == "silence":
            await asyncio.Event().wait()
        elif self._script.end == "close":
            writer.close()
            await writer.wait_closed()

    async def end(self) -> None:
        """Let go of every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def on_tcp(script: Script) -> AsyncIterator[tuple[Hostile, int]]:
    """Listen at a port, as a deployment's replica does."""
    hostile = Hostile(script)
    server = await asyncio.start_server(hostile, "127.0.0.1", 0)
    try:
        yield hostile, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await hostile.end()


@contextlib.asynccontextmanager
async def on_control(script: Script, path: str) -> AsyncIterator[Hostile]:
    """Listen at a unix socket, as a replica's control socket does."""
    hostile = Hostile(script)
    server = await asyncio.start_unix_server(hostile, path)
    try:
        yield hostile
    finally:
        server.close()
        await hostile.end()


# ── what is written to stdout and stderr

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5)
    ),
    max_leaves=12,
)
CODES = ["onnx_invalid", "load_timeout", "internal_error", "replica_ended", "x", "A", "\ud800", ""]
NAMES = ["event", "code", "params", "evidence", "seconds", "passport", "warnings", "refused", "log"]
KINDS = ["failed", "progress", "loaded", "passport", "packed", "\n"]


def _event(kind: str, code: str, params: Any, more: dict[str, Any]) -> bytes:
    event = {**more, "event": kind, "code": code, "params": params}
    return json.dumps(event).encode("utf-8", "surrogatepass") + b"\n"


events = st.builds(
    _event,
    st.sampled_from(KINDS),
    st.sampled_from(CODES),
    JSON | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
)
LINES = [
    *(
        b"\n" * 3000,
        b"x" * 70_000 + b"\n",
        b"[" * 100_000 + b"\n",
        b'{"event": ' + b"\n",
        b"\0\xff\x1b[2J\n",
    ),
    *(
        b'{"event": "failed", "a": [' + b"[]," * 300_000 + b"0]}\n",
        b"\n/etc/passwd psk_0123456789abcdef_x\n",
    ),
]


class Writing(bytes):
    """What a process writes; a failing test shows its beginning."""

    def __repr__(self) -> str:
        return f"{bytes(self[:2000])!r} of {len(self)}"


writings = st.lists(
    st.one_of(events, st.sampled_from(LINES), st.binary(max_size=100)), max_size=6
).map(lambda parts: Writing(b"".join(parts)))
