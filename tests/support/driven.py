"""Connections without sockets: what a model server makes of bytes, and what h11 makes of them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h11

from server.model_server.connections import Connection
from server.model_server.messages import Messages
from server.model_server.reading import MAX_HEAD_BYTES, KnownHeads
from server.model_server.refusals import Answers
from server.model_server.requests import Heads, Request, Response

if TYPE_CHECKING:
    from collections.abc import Iterable

BODY_LIMIT = 64 * 1024


class Taken(NamedTuple):
    """One request as it was understood."""

    method: bytes
    target: bytes
    body: bytes


class Answer(NamedTuple):
    """One answer, read back strictly."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Recorder:
    """Takes every request and answers with its number, at once or when told to."""

    body_limit = BODY_LIMIT
    is_leaving = False

    def __init__(self, *, at_once: bool) -> None:
        self.taken: list[Taken] = []
        self.heads = self.ends = self.held = 0
        self._at_once = at_once
        self._open: list[Request] = []

    def head(self, request: Request) -> Response | None:
        self.heads += 1
        return None

    def handle(self, request: Request) -> None:
        head = request.head
        self.taken.append(Taken(head.method.encode(), head.path.encode("latin-1"), request.body))
        self._open.append(request)
        if self._at_once:
            self.answer()

    def answer(self) -> bool:
        """Answer the oldest request that waits for it; whether there was one."""
        if not self._open:
            return False
        self._open.pop(0).answer(Response(200, (b"%d" % len(self.taken),)))
        return True

    def finished(self, request: Request, status: int | None) -> None:
        self.ends += 1

    def abandoned(self, request: Request) -> None:
        self.abandonments += 1

    def hold(self, size: int) -> bool:
        self.held += size
        return True


@dataclass
class Wire:
    """What a connection writes to, kept."""

    sent: bytearray = field(default_factory=bytearray)
    closed: bool = False
    ended: bool = False
    paused: bool = False

    def write(self, data: bytes) -> None:
        assert not self.ended
        if not self.closed:
            self.sent += data

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return 0


class Outcome(NamedTuple):
    """What became of the bytes on one connection."""

    taken: list[Taken]
    answers: list[Answer]
    is_open: bool


@cache
def _answers() -> Answers:
    return Answers(Messages(Path("/nowhere")))


def outcome(pieces: Iterable[bytes], *, at_once: bool = True) -> Outcome:
    """Give pieces to a connection; check what holds whatever they are."""
    recorder = Recorder(at_once=at_once)
    wire = Wire()
    gone: list[Any] = []
    connection = Connection(
        recorder, _answers(), Heads(), KnownHeads(), joined=gone.append, left=gone.append
    )
    connection.connection_made(wire)
    for piece in pieces:
        # What is not read stays in the kernel until it is.
        while wire.paused and not wire.closed:
            assert recorder.answer(), "reading is paused and nothing is under way"
        if wire.closed:
            break
        now = time.perf_counter()
        connection.data_arrived(piece, now, now)
    while recorder.answer():
        pass
    assert wire.closed or not wire.paused
    is_open = not wire.closed and not wire.ended
    answers = read_answers(bytes(wire.sent), [one.method for one in recorder.taken])
    # No request has two answers, and nothing is answered that was not asked.
    assert len(answers) <= len(recorder.taken) + 1
    connection.connection_lost(None)
    assert recorder.heads == recorder.ends
    assert recorder.held == 0
    return Outcome(recorder.taken, answers, is_open)


def read_answers(raw: bytes, methods: Iterable[bytes] = ()) -> list[Answer]:
    """Read every answer of a connection; anything else among them is a failure."""
    asked = iter(methods)
    found: list[Answer] = []
    while raw:
        head, end, rest = raw.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        assert end, raw
        assert first.startswith(b"HTTP/1.1 "), raw
        status = int(first[9:12])
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        if status < 200:
            raw = rest
            continue
        length = 0 if next(asked, b"") == b"HEAD" else int(headers[b"content-length"])
        assert len(rest) >= length, raw
        found.append(Answer(status, headers, rest[:length]))
        raw = rest[length:]
    return found


def reference(data: bytes) -> list[Taken]:
    """Read the requests that h11 takes, once what it need not refuse was mended for it.

    RFC 9112 wants empty lines before a request skipped (2.2; ours also if they end in a bare CR or
    LF), and lets the first line be split at any number of blanks (3). Neither says where a message
    ends.
    """
    taken: list[Taken] = []
    while data := _mended(data):
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        parser.receive_data(data)
        try:
            one = _read_one(parser)
        except h11.RemoteProtocolError:
            break
        if one is None:
            break
        taken.append(one)
        data = parser.trailing_data[0]
    return taken


def _mended(data: bytes) -> bytes:
    line, end, rest = data.lstrip(b"\r\n").partition(b"\r\n")
    return re.sub(rb"(?<=[^ ]) +", b" ", line) + end + rest


def _read_one(parser: h11.Connection) -> Taken | None:
    head: Any = None
    body = b""
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return Taken(head.method, head.target, body)
        else:
            return None
