from __future__ import annotations

import hashlib
import logging
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from server.api import sessions as module
from server.settings import Settings
from tests.support.toy_edge import ORIGIN, MemorySessions, Toy, running

if TYPE_CHECKING:
    from http.cookies import Morsel

RUN = "0123456789abcdef" * 2
DAY = 24 * 3600


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def wind(toy: Toy) -> Clock:
    """Put a clock that we turn by hand into the running application."""
    clock = Clock()
    toy.app[module.STORAGE]._clock = clock
    return clock


async def upload(toy: Toy, **headers: str) -> tuple[int, dict[str, Any], Morsel[str] | None]:
    form = aiohttp.FormData()
    form.add_field("file", b"x" * 10, filename="model.onnx")
    async with toy.client.post(toy.url("/upload"), data=form, headers=headers) as response:
        cookie = SimpleCookie(response.headers.get("Set-Cookie", "")).get(module.COOKIE)
        return response.status, await response.json(), cookie


async def owner(toy: Toy, **headers: str) -> str | None:
    async with toy.client.get(toy.url(f"/poll?runId={RUN}"), headers=headers) as response:
        assert response.status == 200
        return (await response.json())["owner"]


async def test_a_stranger_who_reads_gets_no_cookie_and_makes_no_row() -> None:
    async with running() as toy:
        async with toy.client.get(toy.url(f"/poll?runId={RUN}")) as response:
            assert "Set-Cookie" not in response.headers
            assert (await response.json())["owner"] is None
        assert toy.sessions.calls == []


async def test_an_upload_makes_a_session_that_later_requests_have() -> None:
    async with running() as toy:
        _, body, cookie = await upload(toy)
        assert cookie is not None
        assert cookie["httponly"]
        assert cookie["samesite"] == "Lax"
        assert not cookie["secure"]
        assert cookie["path"] == "/"
        assert int(cookie["max-age"]) == 7 * DAY
        assert await owner(toy) == body["owner"]
        assert (await upload(toy))[1]["owner"] == body["owner"]
        assert toy.sessions.calls == ["save"]


async def test_the_store_holds_a_hash_and_not_the_cookie() -> None:
    async with running() as toy:
        _, _, cookie = await upload(toy)
        assert cookie is not None
        assert len(cookie.value) == 43
        [(key, row)] = toy.sessions.rows.items()
        assert key == hashlib.sha256(cookie.value.encode()).hexdigest()
        assert cookie.value not in row.data


async def test_polls_never_ask_the_store_again() -> None:
    async with running() as toy:
        await upload(toy)
        toy.sessions.calls.clear()
        for _ in range(5):
            assert await owner(toy)
        assert toy.sessions.calls == []


async def test_a_session_survives_a_restart() -> None:
    store = MemorySessions()
    async with running(sessions=store) as toy:
        _, body, cookie = await upload(toy)
        assert cookie is not None
    async with running(sessions=store) as toy:
        header = f"theme=dark; {module.COOKIE}={cookie.value}; other=1"
        assert await owner(toy, Cookie=header) == body["owner"]


@pytest.mark.parametrize(
    "value", ["", "short", "A" * 43, "A" * 44, "A" * 5000, '"; DROP', "тест", "A" * 42 + "="]
)
async def test_an_id_that_we_did_not_make_is_a_stranger_and_is_never_taken_up(value: str) -> None:
    async with running() as toy:
        cookie = f"{module.COOKIE}={value}"
        assert await owner(toy, Cookie=cookie) is None
        _, _, made = await upload(toy, Cookie=cookie)
        assert made is not None
        assert made.value != value


async def test_a_session_ends_after_seven_idle_days() -> None:
    async with running() as toy:
        clock = wind(toy)
        await upload(toy)
        clock.now += 7 * DAY - 1
        assert await owner(toy)
        clock.now += 7 * DAY + 1
        assert await owner(toy) is None
        assert toy.sessions.rows == {}


async def test_a_session_ends_after_thirty_days_however_busy() -> None:
    async with running() as toy:
        clock = wind(toy)
        await upload(toy)
        for _ in range(29):
            clock.now += DAY
            assert await owner(toy)
        [row] = toy.sessions.rows.values()
        assert row.expires == pytest.approx(clock.now + DAY)
        clock.now += DAY
        assert await owner(toy) is None


async def test_a_busy_session_is_written_once_an_hour_and_its_cookie_renewed() -> None:
    async with running() as toy:
        clock = wind(toy)
        await upload(toy)
        toy.sessions.calls.clear()
        renewed = 0
        for _ in range(24):
            clock.now += 600
            async with toy.client.get(toy.url(f"/poll?runId={RUN}")) as response:
                renewed += "Set-Cookie" in response.headers
        assert toy.sessions.calls.count("save") == renewed == 3


async def test_a_poll_does_not_fail_when_its_session_cannot_be_kept_alive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as toy:
        clock = wind(toy)
        await upload(toy)

        async def full(key: str, data: str, expires: float) -> None:
            raise OSError("disk full")

        toy.sessions.save = full  # type: ignore[method-assign]
        clock.now += 4000
        with caplog.at_level(logging.ERROR):
            assert await owner(toy)
        assert "could not be kept alive" in caplog.text


async def test_a_new_session_that_cannot_be_stored_fails_the_upload() -> None:
    class Full(MemorySessions):
        async def save(self, key: str, data: str, expires: float) -> None:
            raise OSError("disk full")

    async with running(sessions=Full()) as toy:
        status, body, cookie = await upload(toy)
        assert (status, body["code"], cookie) == (500, "internal_error", None)


async def test_a_failed_upload_leaves_no_session() -> None:
    async with running() as toy:
        async with toy.client.post(toy.url("/upload"), data=b"x") as response:
            assert response.status == 400
            assert "Set-Cookie" not in response.headers
        assert toy.sessions.rows == {}


async def test_an_emptied_session_is_deleted_with_its_cookie() -> None:
    async with running() as toy:
        await upload(toy)
        async with toy.client.post(toy.url("/forget")) as response:
            assert f"{module.COOKIE}=" in response.headers["Set-Cookie"]
        assert toy.sessions.rows == {}
        assert await owner(toy) is None


async def test_a_row_that_cannot_be_read_is_a_stranger() -> None:
    async with running() as toy:
        identity = "B" * 43
        key = hashlib.sha256(identity.encode()).hexdigest()
        await toy.sessions.save(key, "not json", 4e9)
        assert await owner(toy, Cookie=f"{module.COOKIE}={identity}") is None


async def test_an_upload_whose_cookie_the_browser_would_drop_says_what_to_change() -> None:
    cross = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}
    async with running() as toy:
        status, body, cookie = await upload(toy, **cross)
        assert (status, body["code"], cookie) == (403, "cookie_samesite_blocks", None)
        assert "PERSEPHONE_COOKIE_SAMESITE" in body["message"]
        assert "127.0.0.1" in body["message"]
        await upload(toy)
        assert (await upload(toy, **cross))[0] == 200


async def test_samesite_none_is_secure_and_lets_other_sites_upload() -> None:
    async with running(Settings(cookie_samesite="none")) as toy:
        cross = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}
        status, _, cookie = await upload(toy, **cross)
        assert status == 200
        assert cookie is not None
        assert cookie["secure"]
        assert cookie["samesite"] == "None"


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHED", 2)
    async with running() as toy:
        cookies = []
        for _ in range(4):
            toy.client.cookie_jar.clear()
            cookies.append((await upload(toy))[2])
        toy.client.cookie_jar.clear()
        assert len(toy.app[module.STORAGE]._cache) == 2
        for cookie in cookies:
            assert cookie is not None
            assert await owner(toy, Cookie=f"{module.COOKIE}={cookie.value}")
