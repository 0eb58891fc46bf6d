"""Whatever comes on a connection of the data plane: bytes, cuts, heads, chunks, sequences."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from tests.support.driven import outcome, reference
from tests.support.fuzzing import SECONDS, examples
from tests.support.model_replica import RUN, Running, compiled_messages, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(SECONDS)

# ── requests, right ones and others

METHODS = ["POST", "GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "get", "PRI", "GE T", "G\0T", ""]
TARGETS = [
    *("/v2", "/v2/health/ready", "/v2/models/shop/infer", "/v2/models/shop/infer?a=b#c"),
    *("http://x/v2", "http://user@x:1/v2/models/shop/infer", "https://", "//x/v2", "x:80", "*"),
    *("/v2/models/%73hop/infer", "/v2/models/%zz/infer", "/v2/%00", "/../v2", "/v2/\xe9", ""),
    *("/v2\t", "/a b", "/\x7f", "/" + "a" * 9000),
]
VERSIONS = [
    *(
        "HTTP/1.1",
        "HTTP/1.0",
        "HTTP/0.9",
        "HTTP/1.2",
        "HTTP/2.0",
        "HTTP/1",
        "http/1.1",
        "HTTP/1.10",
    ),
    *("HTTP/ 1.1", "HTTP/1.1 ", ""),
]
LENGTHS = [
    *(
        "0",
        "1",
        "4",
        "5",
        "04",
        "+4",
        "-4",
        " 4",
        "4 ",
        "4, 4",
        "4,5",
        "0x4",
        "4.0",
        "1e1",
        "",
        "\t4",
    ),
    *("18446744073709551615", "18446744073709551616", "9" * 40, "\xb2", "4\x0b"),
]
CODINGS = [
    *("chunked", "Chunked", "gzip, chunked", "chunked, gzip", "identity", "xchunked", "chunked,"),
    *(",chunked", "chunked, chunked", "\x0bchunked", "chunked;q=1", '"chunked"', "", "chunked "),
]
NAMES = [
    "X",
    "x-y",
    "X Y",
    "X ",
    " X",
    "",
    "X\0",
    "X\xe9",
    "X(",
    "Host",
    "Content-Length\t",
    "X\x7f",
]
VALUES = ["", "a", "a\tb", "a\0b", "a\x01b", "\xe9", "a\rb", "a\nb", "  a  ", "\x7f", "a" * 5000]
KNOWN = [
    *("Host: x", "Host: x", "Host: y:1", "Host:", "Host: x, y", "Connection: close"),
    *("Connection: keep-alive", "Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"),
    *("Expect: 100-continue", "Expect: 200-ok", "Content-Encoding: gzip", "Keep-Alive: 1"),
    *("Accept-Encoding: gzip", "X-Request-Id: 1", "Inference-Header-Content-Length: 3"),
]
ENDS = ["\r\n"] * 20 + [
    "\n",
    "\r",
    "\r\r\n",
    "\n\r\n",
    "\r\n ",
    "\r\n\t",
    "\r\n\r\n",
    "\0\r\n",
    " \r\n",
]
SIZES = [
    "%x",
    "%X",
    "0%x",
    "000000%x",
    "%x;a",
    "%x;a=b",
    '%x;a="b;c"',
    "%x ;a",
    "%x ",
    "0x%x",
    "+%x",
]
TRAILERS = [
    "",
    "X: 1\r\n",
    "Content-Length: 3\r\n",
    "X\r\n",
    "Transfer-Encoding: chunked\r\n",
    " x\r\n",
]

BODY = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}'
FIRST = "POST /v2/models/shop/infer HTTP/1.1"
RIGHT = [
    b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n",
    b"%b\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (FIRST.encode(), len(BODY), BODY),
    b"\r\n%b\r\nHost: x\r\nX: 1\r\nContent-Length: 0\r\nx: 2\r\n\r\n" % FIRST.encode(),
    b"%b\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX: 1\r\n\r\n"
    % FIRST.encode(),
    b"%b\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc" % FIRST.encode(),
    b"GET http://x/v2 HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nAccept: text/plain\r\n\r\n",
]
LAST = [
    b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v2 HTTP/1.0\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\n\r\n",
]


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A request whose head and framing may be wrong in a few places at once."""

    def one(usual: str, others: list[str]) -> str:
        return draw(st.sampled_from([usual] * len(others) + others))

    blank = one(" ", ["  ", "\t", ""])
    lines = [blank.join([one("POST", METHODS), one("/v2", TARGETS), one("HTTP/1.1", VERSIONS)])]
    lines.append(one("Host: x", ["", "host:x", "Host : x", "HOST: x\r\n y"]))
    kinds = draw(st.lists(st.sampled_from("lckn"), max_size=4))
    colon = one(": ", [":", " :", ":\t", "\0:"])
    for kind in kinds:
        if kind == "l":
            lines.append("Content-Length" + colon + one("4", LENGTHS))
        elif kind == "c":
            lines.append("Transfer-Encoding" + colon + one("chunked", CODINGS))
        elif kind == "k":
            lines.append(draw(st.sampled_from(KNOWN)))
        else:
            lines.append(draw(st.sampled_from(NAMES)) + colon + draw(st.sampled_from(VALUES)))
    ends = st.sampled_from(ENDS)
    text = "".join(line + draw(ends) for line in lines if line) + draw(ends)
    body = draw(chunks()) if "c" in kinds else draw(st.sampled_from(["abcd", "", "abc", "abcde"]))
    return (text + body).encode("latin-1")


@st.composite
def chunks(draw: st.DrawFn) -> str:
    """Chunks, of which some may be no chunks."""
    sizes = st.sampled_from(SIZES[:1] * len(SIZES) + SIZES)
    ends = st.sampled_from(ENDS)
    text = ""
    for part in draw(st.lists(st.sampled_from(["abcd", "a" * 17, "GET /"]), max_size=3)):
        claimed = draw(st.sampled_from([len(part)] * 8 + [len(part) + 1, 0, 2**64 - 1, 2**64]))
        text += draw(sizes) % claimed + draw(ends) + part + draw(ends)
    return text + "0" + draw(ends) + draw(st.sampled_from(TRAILERS)) + draw(ends)


SEQUENCES = st.builds(
    lambda right, last: [*right, *last],
    st.lists(st.sampled_from(RIGHT) | heads(), min_size=1, max_size=5),
    st.lists(st.sampled_from(LAST) | heads() | st.binary(max_size=40), max_size=2),
)


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A sequence of requests with some bytes put in, left out or changed."""
    data = bytearray(b"".join(draw(SEQUENCES)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes into pieces, none of them empty."""
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(bounds)]


def shown(raw: Any) -> Any:
    """What has to be the same, however the bytes came: everything but ids and times."""
    answers = [(one.status, one.headers.get(b"connection")) for one in raw.answers]
    return raw.taken, answers, raw.is_open


# ── what holds for all of them


def test_a_right_request_cut_anywhere_is_the_same_request() -> None:
    for request in RIGHT:
        data = request + RIGHT[1] + request
        whole = shown(outcome([data]))
        assert [status for status, _ in whole[1]] == [200] * 3
        for place in range(len(data) + 1):
            assert shown(outcome(cut(data, [place]))) == whole
            assert shown(outcome(cut(data, [place, place + 1]), at_once=False)) == whole
        assert shown(outcome(cut(data, list(range(len(data)))))) == whole


def test_what_stands_behind_a_rejected_request_is_not_begun() -> None:
    rejected = RIGHT[4].replace(b"100-continue", b"a-miracle")
    # As everywhere, every request that the application saw has to end.
    found = outcome([RIGHT[0] + rejected + RIGHT[1] + RIGHT[3][:-9]])
    assert [one.status for one in found.answers] == [200, 417]


def test_a_client_that_goes_on_is_read_until_its_end_after_the_last_answer() -> None:
    last = LAST[0]
    found = outcome([RIGHT[1] + last, RIGHT[1], b"\0"], at_once=False)
    assert [one.status for one in found.answers] == [200, 200]
    assert not found.is_open


@examples(400)
@given(mangled(), st.lists(st.integers(0, 9999), max_size=12), st.booleans())
def test_what_bytes_mean_does_not_depend_on_how_they_came(
    data: bytes, places: list[int], at_once: bool
) -> None:
    assert shown(outcome(cut(data, places), at_once=at_once)) == shown(outcome([data]))


@examples(1000)
@given(mangled())
def test_nothing_is_taken_that_a_strict_reader_does_not_take(data: bytes) -> None:
    ours = outcome([data]).taken
    assert ours == reference(data)[: len(ours)]


# ── on real sockets


class Served:
    """A replica in a thread of its own, and clients that block."""

    def __init__(self, running: Running) -> None:
        self.port = running.port
        self.running = running
        self.loop = asyncio.get_running_loop()

    def exchange(self, pieces: list[bytes]) -> bytes:
        """Send pieces, then say that no more will come, and read until the connection ends."""
        raw = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    sock.sendall(piece)
                sock.shutdown(socket.SHUT_WR)
                while piece := sock.recv(65536):
                    raw += piece
        return raw

    def state(self) -> Any:
        """What the replica says of itself."""
        asked = asyncio.run_coroutine_threadsafe(self.running.order("/state", "GET"), self.loop)
        return asked.result(30)[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("replica")
    found: queue.Queue[Served] = queue.Queue()
    ended = threading.Event()

    async def serve() -> None:
        # However busy the machine is, no prediction of this one is too late.
        async with running(
            compiled_messages(folder / "locale"), folder, predict_seconds=60.0
        ) as one:
            found.put(Served(one))
            await asyncio.to_thread(ended.wait)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found.get(timeout=60)
    finally:
        ended.set()
        thread.join()


@examples(60)
@given(st.binary(max_size=300) | mangled(), st.lists(st.integers(0, 9999), max_size=3))
def test_no_bytes_bring_the_server_down_or_hang_it(
    served: Served, data: bytes, places: list[int]
) -> None:
    pieces = cut(data.replace(b"/models/shop/", b"/models/%b/" % RUN.encode()), places)
    raw = served.exchange(pieces)
    assert b"internal_error" not in raw
    assert b"HTTP/1.1 5" not in raw
    assert raw.count(b"\r\nServer: persephone\r\n") <= data.count(b"HTTP/1.") + 1
    assert served.exchange([RIGHT[0]]).startswith(b"HTTP/1.1 200 ")


def test_nothing_is_under_way_after_all_that(served: Served) -> None:
    for _ in range(3000):
        state = served.state()
        if not state["in_flight"] and not state["connections"]:
            return
    pytest.fail(str(state))
