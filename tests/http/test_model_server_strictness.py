from __future__ import annotations

import asyncio
import json
import os
import random
import re
from typing import TYPE_CHECKING

import pytest

from server.model_server import connections, reading
from tests.support.model_replica import (
    HANGS,
    ROWS,
    RUN,
    Running,
    compiled_messages,
    head,
    running,
    tensor,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.model_server.messages import Messages

BODY = json.dumps({"inputs": [tensor(ROWS)]}).encode()
PREDICTION = head(Content_Length=str(len(BODY))) + BODY
READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
START = f"POST /v2/models/{RUN}/infer HTTP/1.1\r\n".encode()
END = b"\r\n\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Messages:
    return compiled_messages(tmp_path_factory.mktemp("locale"))


@pytest.fixture
async def replica(messages: Messages, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(messages, tmp_path) as one:
        yield one


def statuses(raw: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)]


SMUGGLED = {
    "both lengths": b"Host: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked" + END,
    "both lengths, turned": b"Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4" + END,
    "two lengths": b"Host: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "equal lengths": b"Host: x\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": b"Host: x\r\nContent-Length: 4, 4\r\n\r\nabcd",
    "a signed length": b"Host: x\r\nContent-Length: +4\r\n\r\nabcd",
    "a negative length": b"Host: x\r\nContent-Length: -4\r\n\r\nabcd",
    "an endless length": b"Host: x\r\nContent-Length: 99999999999999999999999\r\n\r\nabcd",
    "a length in hex": b"Host: x\r\nContent-Length: 0x4\r\n\r\nabcd",
    "a coding before chunked": b"Host: x\r\nTransfer-Encoding: gzip, chunked" + END,
    "a coding after chunked": b"Host: x\r\nTransfer-Encoding: chunked, gzip" + END,
    "identity": b"Host: x\r\nTransfer-Encoding: identity\r\n\r\nabcd",
    "nearly chunked": b"Host: x\r\nTransfer-Encoding: xchunked" + END,
    "chunked twice": b"Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked" + END,
    "chunked after a tabulator": b"Host: x\r\nTransfer-Encoding: \x0bchunked" + END,
    "a blank before the colon": b"Host: x\r\nContent-Length : 4\r\n\r\nabcd",
    "a folded header": b"Host: x\r\nX: a\r\n Content-Length: 4\r\n\r\nabcd",
    "a folded encoding": b"Host: x\r\nTransfer-Encoding:\r\n chunked" + END,
    "a bare line feed": b"Host: x\nContent-Length: 4\r\n\r\nabcd",
    "a bare carriage return": b"Host: x\rContent-Length: 4\r\n\r\nabcd",
    "a zero byte": b"Host: x\0\r\nContent-Length: 4\r\n\r\nabcd",
    "no host": b"Content-Length: 4\r\n\r\nabcd",
    "two hosts": b"Host: x\r\nHost: y\r\nContent-Length: 4\r\n\r\nabcd",
    "a header without a name": b"Host: x\r\n: 4\r\n\r\n",
    "an upgrade with a body": b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 4\r\n\r\nabcd",
}
BAD_CHUNKS = {
    "no number": b"zz\r\nabcd\r\n",
    "a prefix": b"0x4\r\nabcd\r\n",
    "a sign": b"-4\r\nabcd\r\n",
    "a blank": b"4 \r\nabcd\r\n",
    "a line feed": b"4\nabcd\r\n",
    "a line feed in an extension": b"4;a\nabcd\r\n",
    "no end": b"4\r\nabcdX\r\n",
    "an endless size": b"f" * 17 + b"\r\nabcd\r\n",
    "a length among the trailers": b"4\r\nabcd\r\n0\r\nContent-Length: 7\r\n\r\n",
}
OTHER_PROTOCOLS = {
    "the head of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/0.9": b"GET /v2\r\n\r\n",
    "HTTP/1.2": b"GET /v2 HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2.0 in words": b"GET /v2 HTTP/2.0\r\nHost: x\r\n\r\n",
    "a method in small letters": b"get /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no method": b"/v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a blank in the path": b"GET /v2 /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "two hosts of HTTP/1.0": b"GET /v2 HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
    "a chunked HTTP/1.0": b"POST /v2 HTTP/1.0\r\nTransfer-Encoding: chunked" + END,
}
MALFORMED = {
    **{name: START + rest for name, rest in SMUGGLED.items()},
    **{
        f"chunks: {name}": head(Transfer_Encoding="chunked") + rest
        for name, rest in BAD_CHUNKS.items()
    },
    **OTHER_PROTOCOLS,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_could_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(
    replica: Running, data: bytes
) -> None:
    raw = await replica.exchange(data + READY)
    assert statuses(raw) == [400]
    assert json.loads(raw.partition(b"\r\n\r\n")[2])["code"] == "request_malformed"
    assert b"Connection: close" in raw
    # Others are not disturbed.
    assert (await replica.infer(ROWS))[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 4000 + b"\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000,
        b"\r\n" * 20_000,
    ],
    ids=["value", "path", "headers", "endless", "empty lines"],
)
async def test_a_head_is_bounded_also_while_it_comes(replica: Running, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    for start in range(0, len(data), 5000):
        writer.write(data[start : start + 5000])
        await asyncio.sleep(0)
    raw = await asyncio.wait_for(reader.read(), 20)
    assert statuses(raw) == [431]
    answer = json.loads(raw.partition(b"\r\n\r\n")[2])
    assert answer["code"] == "request_head_too_large"
    assert "16384" in answer["message"]
    writer.close()


async def test_what_frames_a_body_is_bounded(replica: Running) -> None:
    for framing in (b"1;" + b"e" * 90_000, b"1\r\n \r\n" * 3 + b"0\r\n" + b"X: a\r\n" * 20_000):
        raw = await replica.exchange(head(Transfer_Encoding="chunked") + framing)
        assert statuses(raw) == [400]


async def test_every_way_to_frame_and_cut_a_request_means_the_same(replica: Running) -> None:
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (1, BODY[i : i + 1]) for i in range(len(BODY)))
    whole_address = PREDICTION.replace(b"POST /v2", b"POST http://elsewhere:1/v2", 1)
    ways = [
        PREDICTION,
        b"\r\n" + PREDICTION,
        PREDICTION.replace(b"infer HTTP", b"infer?a=b HTTP", 1),
        whole_address,
        head(Transfer_Encoding="CHUNKED") + chunks + b"0\r\nTrailer: 1\r\n\r\n",
        PREDICTION.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: x\r\n", b""),
        PREDICTION.replace(b"Host: x", b"Host: x\r\nX: 1\r\nx: 2"),
        head(Content_Length=str(len(BODY)), Expect="100-Continue") + BODY,
    ]
    for data in ways:
        for cut in (1, 40, len(data)):
            reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
            for start in range(0, len(data), cut):
                writer.write(data[start : start + cut])
                if cut == 40:
                    await asyncio.sleep(0.001)
            writer.write_eof()
            raw = await asyncio.wait_for(reader.read(), 20)
            found = [status for status in statuses(raw) if status != 100]
            assert found == [200], data
            assert json.loads(raw[raw.rindex(b"\r\n\r\n") :])["outputs"][0]["data"] == [2, 4, 6, 9]
            writer.close()


async def test_an_old_client_keeps_its_connection_only_if_it_asks_to(replica: Running) -> None:
    old = b"GET /v2/health/ready HTTP/1.0\r\n"
    assert statuses(await replica.exchange(old + b"\r\n" + old + b"\r\n")) == [200]
    kept = await replica.exchange(old + b"Connection: keep-alive\r\n\r\n" + old + b"\r\n")
    assert statuses(kept) == [200, 200]
    assert b"Connection: keep-alive" in kept


async def test_a_wish_for_another_protocol_is_ignored(replica: Running) -> None:
    wish = READY[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    raw = await replica.exchange(wish)
    assert statuses(raw) == [200]
    assert b"Connection: close" in raw
    tunnel = await replica.exchange(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\nhello")
    assert statuses(tunnel) == [404]


async def test_requests_ahead_of_their_answers_are_answered_in_order(replica: Running) -> None:
    other = json.dumps({"inputs": [tensor([[5, 6]])], "id": "last"}).encode()
    last = head(Content_Length=str(len(other)), Connection="close") + other
    raw = await replica.exchange(PREDICTION + READY + PREDICTION + last)
    assert statuses(raw) == [200] * 4
    assert raw.index(b'"ready":true') > raw.index(b"outputs")
    assert b'"id":"last"' in raw[raw.rindex(b"\r\n\r\n") :]
    figures = await replica.figures()
    assert figures['inference_requests_total{code="2xx"}'] == 3
    assert figures["inference_requests_in_progress"] == 0


async def test_requests_without_end_ahead_of_their_answers_are_refused(replica: Running) -> None:
    hanging = json.dumps({"inputs": [tensor([[HANGS, 0]])]}).encode()
    first = head(Content_Length=str(len(hanging))) + hanging
    asking = asyncio.create_task(replica.exchange(first + READY * 100))
    assert await asyncio.to_thread(replica.model.entered.wait, 5)
    replica.model.released.set()
    raw = await asking
    found = statuses(raw)
    assert found[-1] == 400
    assert set(found[:-1]) == {200}
    assert len(found) < 25
    answer = json.loads(raw[raw.rindex(b"\r\n\r\n") :])
    assert answer["code"] == "pipelining_too_deep"
    assert "16" in answer["message"]


async def test_one_that_asks_ahead_is_read_no_further_until_it_is_answered(
    replica: Running,
) -> None:
    hanging = json.dumps({"inputs": [tensor([[HANGS, 0]])]}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(head(Content_Length=str(len(hanging))) + hanging)
    assert await asyncio.to_thread(replica.model.entered.wait, 5)
    for _ in range(8):
        writer.write(READY)
        await asyncio.sleep(0.01)
    replica.model.released.set()
    writer.write(READY[:-2] + b"Connection: close\r\n\r\n")
    assert statuses(await asyncio.wait_for(reader.read(), 20)) == [200] * 10
    writer.close()


async def test_one_that_asked_ahead_is_read_further_after_the_last_answer(
    replica: Running,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    for _ in range(3):
        writer.write(PREDICTION * 2)
        for _answer in range(2):
            raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            assert statuses(raw) == [200]
            await reader.readexactly(int(raw.partition(b"Content-Length: ")[2].split(b"\r\n")[0]))
    writer.close()


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(replica: Running) -> None:
    for data in (PREDICTION[:30], PREDICTION[:-5], PREDICTION, PREDICTION * 3 + PREDICTION[:50]):
        _reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
        writer.write(data)
        writer.transport.abort()
    state = {}
    for _ in range(200):
        state = (await replica.order("/state", "GET"))[1]
        if not state["connections"] and not state["in_flight"]:
            break
        await asyncio.sleep(0.01)
    assert (state["connections"], state["in_flight"]) == (0, 0)
    assert (await replica.figures())["inference_requests_in_progress"] == 0


async def test_an_answer_that_nobody_reads_is_given_up(
    messages: Messages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.1)
    async with running(messages, tmp_path, max_body_bytes=32 * 1024 * 1024) as replica:
        rows = [[1.0, 2.0]] * 1_000_000
        body = json.dumps({"inputs": [tensor(rows)]}).encode()
        _reader, writer = await asyncio.open_connection("127.0.0.1", replica.port, limit=1024)
        writer.write(head(Content_Length=str(len(body))) + body)
        while not (await replica.order("/state", "GET"))[1]["in_flight"]:
            await asyncio.sleep(0.01)
        while (await replica.order("/state", "GET"))[1]["in_flight"]:
            await asyncio.sleep(0.05)
        assert (await replica.order("/state", "GET"))[1]["connections"] == 0
        writer.close()


PIECES = [
    *(PREDICTION, READY, BODY, b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"\0", b"\xff" * 9),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Host: y\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Content-Encoding: gzip\r\n"),
    *(b"Inference-Header-Content-Length: 9\r\n", START, b"5\r\nabcde\r\n", b" ", b":"),
]


async def test_no_bytes_make_a_fault_of_our_own(replica: Running) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.randrange(2**31)
    print(f"seed: {seed}")  # noqa: T201 - shown where the test fails
    chance = random.Random(seed)

    async def torment() -> None:
        data = bytearray(b"".join(chance.choices(PIECES, k=chance.randint(1, 6))))
        for _ in range(chance.randint(0, 4)):
            place = chance.randrange(len(data) + 1)
            data[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
        for start in range(0, len(data), cut := chance.choice([7, 100, 10_000])):
            writer.write(bytes(data[start : start + cut]))
            await asyncio.sleep(0)
        writer.write_eof()
        raw = b""
        while piece := await asyncio.wait_for(reader.read(65536), 20):
            raw += piece
        writer.close()
        assert all(status < 500 for status in statuses(raw)), bytes(data)
        assert b"internal_error" not in raw, bytes(data)

    for _ in range(60):
        await asyncio.gather(*(torment() for _ in range(5)))
    assert (await replica.infer(ROWS))[0] == 200
    assert (await replica.order("/state", "GET"))[1]["in_flight"] == 0
    assert (await replica.figures())["inference_requests_in_progress"] == 0


def test_heads_are_remembered_only_if_they_mean_the_same_again() -> None:
    known = reading.KnownHeads()
    came: list[str] = []

    class Sink:
        body_limit = 1000

        def head_came(self, request: object) -> None:
            came.append("head")

        def body_came(self, request: object) -> None:
            came.append("body")

        def whole_came(self, request: object) -> None:
            came.append("whole")

    reader = reading.RequestReader(Sink(), known)
    for data, expected in (
        (PREDICTION, ["head", "body"]),
        (PREDICTION, ["whole"]),
        (PREDICTION[:-3], ["head"]),
        (PREDICTION[-3:], ["body"]),
        (PREDICTION + READY, ["head", "body", "head", "body"]),
        (READY, ["head", "body"]),
        (READY, ["whole"]),
        (READY[:9], []),
        (READY[9:], ["head", "body"]),
        (PREDICTION, ["whole"]),
    ):
        came.clear()
        reader.feed(data, 1.0, 1.0)
        assert came == expected
    once = READY[:-2] + b"X-Request-Id: 1\r\n\r\n"
    for _ in range(2):
        came.clear()
        reader.feed(once, 1.0, 1.0)
        assert came == ["head", "body"]
