from __future__ import annotations

import pytest

from server.settings import Settings
from tests.support.toy_edge import ORIGIN, running

RUN = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"/poll?runId={RUN}", 200),
        ("GET", "/poll", 400),
        ("GET", "/nowhere", 404),
        ("DELETE", "/deploy", 405),
        ("POST", "/read", 413),
        ("GET", "/fail/500", 500),
        ("GET", "/fail/503", 503),
        ("GET", "/fail/504", 504),
    ],
)
async def test_a_page_of_ours_may_read_every_answer(method: str, path: str, status: int) -> None:
    async with running() as toy:
        data = b"x" * 2000 if path == "/read" else None
        async with toy.client.request(
            method, toy.url(path), headers={"Origin": ORIGIN}, data=data
        ) as response:
            assert response.status == status
            assert response.headers.getall("Access-Control-Allow-Origin") == [ORIGIN]
            assert response.headers.getall("Access-Control-Allow-Credentials") == ["true"]
            exposed = set(response.headers["Access-Control-Expose-Headers"].split(","))
            assert exposed == {"ETag", "X-Request-Id", "X-Metrics-Source", "Retry-After"}
            assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "HTTP://LOCALHOST:3000", ""])
async def test_a_foreign_page_may_read_nothing(origin: str) -> None:
    async with running() as toy:
        for path in (f"/poll?runId={RUN}", "/nowhere"):
            async with toy.client.get(toy.url(path), headers={"Origin": origin}) as response:
                assert not [name for name in response.headers if name.startswith("Access-")]


async def test_a_refusal_of_the_checks_can_be_read_by_our_page() -> None:
    async with running() as toy:
        headers = {"Origin": ORIGIN, "Host": "evil.example"}
        async with toy.client.get(toy.url("/poll"), headers=headers) as response:
            assert response.status == 421
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


async def test_preflight_allows_our_page_with_credentials() -> None:
    async with running() as toy:
        headers = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-request-id",
        }
        async with toy.client.options(toy.url("/deploy"), headers=headers) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert response.headers["Access-Control-Allow-Credentials"] == "true"
            assert response.headers["Access-Control-Allow-Methods"] == "POST"
            assert "CONTENT-TYPE" in response.headers["Access-Control-Allow-Headers"].upper()


async def test_preflight_of_an_unknown_path_lets_the_page_read_the_404() -> None:
    async with running() as toy:
        headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "DELETE"}
        async with toy.client.options(toy.url("/nowhere"), headers=headers) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert response.headers["Access-Control-Allow-Methods"] == "DELETE"
        headers["Origin"] = "http://evil.example"
        async with toy.client.options(toy.url("/nowhere"), headers=headers) as response:
            assert response.status == 404


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
async def test_preflight_of_a_foreign_page_is_refused_in_json(origin: str) -> None:
    async with running() as toy:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        async with toy.client.options(toy.url("/deploy"), headers=headers) as response:
            assert response.status == 403
            assert (await response.json())["code"] == "cors_preflight_refused"
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_every_configured_origin_is_allowed_and_only_those() -> None:
    settings = Settings(cors_origins=("https://ui.example",))
    async with running(settings) as toy:
        for origin, is_ours in [("https://ui.example", True), (ORIGIN, False)]:
            url = toy.url(f"/poll?runId={RUN}")
            async with toy.client.get(url, headers={"Origin": origin}) as response:
                assert ("Access-Control-Allow-Origin" in response.headers) == is_ours
