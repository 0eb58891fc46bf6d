"""Which names the service answers to, in the header and in the request line."""

from __future__ import annotations

import pytest
from aiohttp import HttpVersion10
from aiohttp.test_utils import make_mocked_request

from server.api.security import Guard
from server.errors import InvalidRequestError
from server.settings import Settings
from tests.support.toy_edge import exchange, parsed, running

RUN = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("models.example", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost@evil.example", 421),
        ("10.0.0.7", 421),
        ("localhost:port", 421),
        ("localhost:99999", 421),
        ("localhost:", 200),
        ("[0:0:0:0:0:0:0:1]", 200),
        ("[::0001]:8000", 200),
        ("[::ffff:127.0.0.1]", 200),
        ("[::2]", 421),
        ("::1", 421),
        ("[::1%25lo]", 421),
        ("127.1", 421),
        ("2130706433", 421),
        ("localhost,evil.example", 421),
        ("localhost/x", 421),
        ("localhost?x", 421),
        ("localhost#x", 421),
        ("localhost.", 421),
        ("", 421),
    ],
)
async def test_only_our_host_names_are_answered(host: str, status: int) -> None:
    settings = Settings(public_url="https://models.example/x")
    async with running(settings) as toy:
        for _ in range(2):
            async with toy.client.get(
                toy.url(f"/poll?runId={RUN}"), headers={"Host": host}
            ) as response:
                assert response.status == status
                if status == 421:
                    assert (await response.json())["code"] == "host_not_allowed"


async def test_behind_all_addresses_any_address_is_a_host_but_no_other_name() -> None:
    async with running(Settings(host="0.0.0.0", allowed_hosts=("box",))) as toy:
        for host, status in [("10.0.0.7:80", 200), ("box", 200), ("evil.example", 421)]:
            async with toy.client.get(
                toy.url(f"/poll?runId={RUN}"), headers={"Host": host}
            ) as response:
                assert response.status == status


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost", "localhost", 200),
        ("http://[::1]:8000", "localhost", 200),
        ("https://models.example", "localhost", 200),
        ("http://evil.example", "localhost", 421),
        ("http://localhost@evil.example", "localhost", 421),
        ("http://localhost:80@evil.example", "localhost", 421),
        ("ftp://evil.example", "localhost", 421),
        ("http://localhost", "evil.example", 421),
    ],
)
async def test_a_request_line_with_an_address_is_held_to_it(
    target: str, host: str, status: int
) -> None:
    async with running(Settings(public_url="https://models.example/x")) as toy:
        path = f"{target}/poll?runId={RUN}"
        data = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert parsed(await exchange(toy, data.encode()))[0] == status
        if host == "localhost":
            data = f"GET {path} HTTP/1.0\r\n\r\n"
            assert parsed(await exchange(toy, data.encode()))[0] == status


def test_a_request_without_a_host_is_refused_whatever_let_it_through() -> None:
    gate = Guard(Settings())
    with pytest.raises(InvalidRequestError, match="host_missing"):
        gate.check(make_mocked_request("GET", "/poll"))
    gate.check(make_mocked_request("GET", "/poll", version=HttpVersion10))


async def test_a_second_host_is_refused_though_the_first_is_known() -> None:
    async with running() as toy:
        line = f"GET /poll?runId={RUN} HTTP/1.1\r\nHost: localhost\r\n"
        end = "Connection: close\r\n\r\n"
        assert parsed(await exchange(toy, (line + end).encode()))[0] == 200
        data = f"{line}Host: evil.example\r\n{end}"
        assert parsed(await exchange(toy, data.encode()))[0] == 400
