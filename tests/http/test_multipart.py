from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
from typing import Any

import aiohttp
import pytest

from server.api.multipart import Pace
from tests.support.toy_edge import MAX_UPLOAD, Toy, exchange, running

BOUNDARY = "----edge7"
QUICK = Pace(idle_seconds=0.2, grace_seconds=0.3, bytes_per_second=1000, whole_seconds=30)


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="m.onnx"') -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n"
    return head.encode() + content + b"\r\n"


def form(*parts: bytes, end: bytes = b"--" + BOUNDARY.encode() + b"--\r\n") -> bytes:
    return b"".join(parts) + end


def field(name: str, value: bytes) -> bytes:
    return part(value, f'form-data; name="{name}"')


async def send(
    toy: Toy, data: Any, content_type: str = f"multipart/form-data; boundary={BOUNDARY}"
) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": content_type} if content_type else {}
    data = io.BytesIO(data) if isinstance(data, bytes) else data
    async with toy.client.post(
        toy.url("/upload"), data=data, headers=headers, skip_auto_headers={"Content-Type"}
    ) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


@pytest.mark.parametrize("size", [1, 2, 100, 65_536, 1024 * 1024, MAX_UPLOAD])
async def test_a_file_arrives_as_it_was(size: int) -> None:
    content = (b"\r\n--\r\r\n--" + BOUNDARY.encode()[:-1] + b"\x00\xff") * (size // 19 + 1)
    async with running() as toy:
        status, body = await send(toy, form(part(content[:size])))
        assert status == 200, body
        assert body["bytes"] == size
        assert body["head"] == content[:size][:64].hex()
        assert body["name"] == "m.onnx"
        assert body["model"] is None


async def test_aiohttps_own_form_and_a_chunked_body_are_understood() -> None:
    async with running() as toy:
        data = aiohttp.FormData()
        data.add_field("file", b"abc", filename="модель.onnx")
        async with toy.client.post(toy.url("/upload"), data=data) as response:
            assert (await response.json())["bytes"] == 3

        async def pieces() -> Any:
            whole = form(part(b"y" * 1000))
            for start in range(0, len(whole), 7):
                yield whole[start : start + 7]

        status, body = await send(toy, pieces())
        assert (status, body["bytes"]) == (200, 1000)


@pytest.mark.parametrize("order", ["before", "after"])
async def test_the_model_field_may_stand_before_or_after_the_file(order: str) -> None:
    parts = [field("model", b"iris-1.0_b"), part(b"abc")]
    if order == "after":
        parts.reverse()
    async with running() as toy:
        status, body = await send(
            toy, form(field("comment", b"unknown fields are skipped"), *parts)
        )
        assert (status, body["model"], body["bytes"]) == (200, "iris-1.0_b", 3)


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="file"; filename="../../etc/x.pt"', "x.pt"),
        (r'form-data; name="file"; filename="C:\\dir\\x.pt"', "x.pt"),
        ("form-data; name=file; filename=x.pt", "x.pt"),
        ('form-data; filename="a b;c.pt" ; name="file"', "a b;c.pt"),
        ('form-data; name="file"; filename="q%22q.pt"', 'q"q.pt'),
        (r'form-data; name="file"; filename="q\"q.pt"', 'q"q.pt'),
        ('form-data; name="file"; filename="модель.onnx"', "модель.onnx"),
        ("form-data; name=file; filename=x; filename*=UTF-8''%D0%BC.onnx", "м.onnx"),
        ('form-data; name="file"; filename="' + "я" * 400 + '"', "я" * 255),
        ('form-data; name="file"; filename="a\x01\x02b"', "ab"),
        ('form-data; name="file"; filename="/"', "artifact"),
    ],
)
async def test_a_file_name_is_made_fit_to_be_shown(disposition: str, name: str) -> None:
    async with running() as toy:
        status, body = await send(toy, form(part(b"abc", disposition)))
        assert (status, body.get("name")) == (200, name)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "file_part_missing"),
        (form(), "file_part_missing"),
        (form(field("other", b"x")), "file_part_missing"),
        (form(field("file", b"x")), "file_name_missing"),
        (form(part(b"x", 'form-data; name="file"; filename=""')), "file_name_missing"),
        (form(part(b"")), "file_empty"),
        (form(part(b"x"), part(b"y")), "file_part_repeated"),
        (form(part(b"x"), field("file", b"y")), "file_part_repeated"),
        (form(part(b"x"), end=b""), "multipart_truncated"),
        (part(b"x")[:40], "multipart_truncated"),
        (b"no boundary in here at all", "multipart_truncated"),
        (form(part(b"x"))[:-5], "multipart_truncated"),
        (form(part(b"x"), end=b"--" + BOUNDARY.encode() + b"\r\n"), "multipart_truncated"),
        (b"--" + BOUNDARY.encode() + b"junk\r\n", "multipart_malformed"),
        (b"--" + BOUNDARY.encode() + b"\r\n\r\nx", "multipart_malformed"),
        (b"--" + BOUNDARY.encode() + b"\r\nX" + b"y" * 9000, "multipart_malformed"),
        (b"--" + BOUNDARY.encode() + b"\r\nno colon\r\n\r\nx", "multipart_malformed"),
        (form(part(b"x", "attachment; filename=x")), "multipart_malformed"),
        (form(part(b"x", "form-data")), "multipart_malformed"),
        (form(part(b"x", 'form-data; name="file')), "multipart_malformed"),
        (form(part(b"x", "form-data; name=file; filename=a\r\nContent-Transfer-Encoding: base64"))
         , "multipart_malformed"),
        (form(*(field(f"f{n}", b"") for n in range(70)), part(b"x")), "multipart_malformed"),
        (form(field("model", b"bad name"), part(b"x")), "model_name_malformed"),
        (form(field("model", b""), part(b"x")), "model_name_malformed"),
        (form(field("model", b"x" * 65), part(b"x")), "model_name_malformed"),
        (form(field("model", b"x" * 5000), part(b"x")), "model_name_malformed"),
        (form(field("model", b"\xff"), part(b"x")), "model_name_malformed"),
        (form(part(b"x"), field("model", b"-a")), "model_name_malformed"),
        (form(part(b"\x08\x07" * 9, "form-data; name=model; filename=m.onnx")), "model_name_is_file"),
        (form(part(b"\x80" * 5000, "form-data; name=model; filename=m.onnx")), "model_name_is_file"),
        (form(field("model", b"a"), part(b"x"), field("model", b"a")), "parameter_repeated"),
    ],
)  # fmt: skip
async def test_a_broken_form_is_400_and_named(data: bytes, code: str) -> None:
    async with running() as toy:
        status, body = await send(toy, data)
        assert (status, body["code"]) == (400, code)


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        ("", "multipart_expected"),
        ("application/octet-stream", "multipart_expected"),
        ("multipart/mixed; boundary=x", "multipart_expected"),
        ("multipart/form-data", "multipart_boundary_missing"),
        ("multipart/form-data; boundary=", "multipart_boundary_missing"),
        ('multipart/form-data; boundary="a', "multipart_boundary_missing"),
        ("multipart/form-data; boundary=" + "x" * 71, "multipart_boundary_missing"),
        ("multipart/form-data; boundary=я", "multipart_boundary_missing"),
    ],
)
async def test_what_is_no_form_is_400_and_named(content_type: str, code: str) -> None:
    async with running() as toy:
        status, body = await send(toy, b"x", content_type)
        assert (status, body["code"]) == (400, code)


async def test_an_encoded_body_is_415() -> None:
    async with running() as toy:
        for encoding, status in [("gzip", 415), ("br", 415), ("identity", 200)]:
            headers = {
                "Content-Encoding": encoding,
                "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
            }
            async with toy.client.post(
                toy.url("/upload"), data=form(part(b"x")), headers=headers
            ) as response:
                assert response.status == status


async def test_one_byte_too_much_is_413() -> None:
    async with running() as toy:
        status, body = await send(toy, form(part(b"x" * (MAX_UPLOAD + 1))))
        assert (status, body["code"]) == (413, "artifact_too_large")
        assert "3 МиБ" in body["message"]


async def test_a_body_without_a_length_is_counted_and_ends_as_413() -> None:
    async def endless() -> Any:
        yield form(part(b""), end=b"")[:-2]
        while True:
            yield b"x" * 65_536

    async with running(lingering_time=0.1) as toy:
        request = (
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=" + BOUNDARY.encode() + b"\r\n\r\n"
        )
        reader, writer = await toy.raw()
        writer.write(request)

        async def pump() -> None:
            async for piece in endless():
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()

        task = asyncio.create_task(pump())
        assert b" 413 " in await asyncio.wait_for(reader.readline(), 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()


async def test_too_large_a_length_is_413_before_the_body_is_sent() -> None:
    async with running() as toy:
        head = (
            f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**9}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
            "Expect: 100-continue\r\n\r\n"
        )
        reader, writer = await toy.raw()
        writer.write(head.encode())
        assert b" 413 " in await asyncio.wait_for(reader.readline(), 20)
        writer.close()


async def test_a_body_that_is_wanted_gets_100_continue() -> None:
    async with running() as toy:
        data = form(part(b"abc"))
        head = (
            f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        reader, writer = await toy.raw()
        writer.write(head.encode())
        assert await asyncio.wait_for(reader.readline(), 20) == b"HTTP/1.1 100 Continue\r\n"
        assert await reader.readline() == b"\r\n"
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["bytes"] == 3
        writer.close()


async def test_too_much_beside_the_file_is_413() -> None:
    async with running() as toy:
        junk = field("junk", b"x" * (1024 * 1024 + 70_000))
        for data in (form(junk, part(b"x")), form(part(b"x"), junk)):
            status, body = await send(toy, data)
            assert (status, body["code"]) == (413, "form_too_large")


async def test_what_follows_the_closing_boundary_is_ignored_and_the_connection_kept() -> None:
    async with running() as toy:
        for _ in range(3):
            status, _ = await send(toy, form(part(b"x")) + b"epilogue " * 50)
            assert status == 200
        assert len(toy.client.connector._conns) == 1  # type: ignore[union-attr]


async def half(toy: Toy, rest: list[bytes], pause: float) -> bytes:
    """Begin an upload, send ``rest`` with a pause before each, and return the answer."""
    head = (
        "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    reader, writer = await toy.raw()
    writer.write(head.encode() + form(part(b"abc"), end=b""))
    answer = asyncio.create_task(_all_that_comes(reader))
    for piece in rest:
        await asyncio.sleep(pause)
        if answer.done():
            break
        writer.write(piece)
    data = await asyncio.wait_for(answer, 20)
    writer.close()
    return data


async def _all_that_comes(reader: asyncio.StreamReader) -> bytes:
    data = b""
    # Who goes on sending to a connection that was closed is told by a reset.
    with contextlib.suppress(ConnectionResetError):
        while piece := await reader.read(65536):
            data += piece
    return data


async def test_a_silent_upload_is_408_and_closed() -> None:
    async with running(pace=QUICK, lingering_time=0.1) as toy:
        answer = await half(toy, [], 0)
        assert b" 408 " in answer
        assert b"body_too_slow" in answer
        assert toy.sessions.rows == {}


async def test_a_dripping_upload_is_408_and_closed() -> None:
    async with running(pace=QUICK, lingering_time=0.1) as toy:
        assert b" 408 " in await half(toy, [b"x"] * 1000, 0.02)


async def test_a_slow_consumer_is_not_the_callers_fault() -> None:
    pace = Pace(grace_seconds=0.3, bytes_per_second=1e9)
    async with running(pace=pace, pause=0.2) as toy:
        assert (await send(toy, form(part(b"x" * MAX_UPLOAD))))[0] == 200


async def test_an_upload_cut_off_by_its_sender_leaves_the_server_well() -> None:
    async with running() as toy:
        head = (
            "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        )
        _, writer = await toy.raw()
        writer.write(head.encode() + form(part(b"abc"), end=b""))
        await writer.drain()
        await asyncio.sleep(0.05)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        async with asyncio.timeout(10):
            while not toy.observed:
                await asyncio.sleep(0.01)
        assert toy.observed == [("/upload", "POST", 499)]
        assert (await send(toy, form(part(b"x"))))[0] == 200


async def test_a_truncated_chunked_upload_is_400() -> None:
    async with running() as toy:
        data = (
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n5\r\n--x\r\n\r\nnonsense\r\n"
        )
        assert b" 400 " in (await exchange(toy, data))[:20]
