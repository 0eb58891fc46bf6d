"""The gateway between callers and replicas that fail in every way they can."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import timedelta
from typing import TYPE_CHECKING

import aiohttp
import pytest

from server.settings import Settings
from server.states import Scope
from tests.support.gateway import (
    ANSWER,
    HUGE,
    INFER,
    KEY,
    PIECE,
    AnswersBeforeTheBody,
    AnswersHugeSlowly,
    AnswersTwice,
    BreaksOffHalfway,
    ClosesReusedConnections,
    IsReplacedByAnother,
    RedirectsElsewhere,
    Replica,
    SaysNothing,
    SendsATrailerWithoutEnd,
    SendsHostileHeaders,
    in_front_of,
)
from tests.support.tokens import RUN, a_run, desk
from tests.support.toy_edge import ORIGIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


# ── what a replica must not do


async def test_an_answer_comes_back_as_it_is() -> None:
    async with Replica() as replica, in_front_of(replica.port) as front:
        assert await front.predict(INFER + "?a=%20b") == (200, ANSWER)
        assert replica.targets == ["/v2/models/iris/infer?a=%20b"]
        assert replica.bodies == [b"{}"]
        assert replica.hosts == [f"127.0.0.1:{replica.port}"]


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_redirect_is_neither_followed_nor_passed_back(status: int, method: str) -> None:
    path = INFER if method == "POST" else "/dev/v2/models/iris"
    async with (
        Replica() as victim,
        RedirectsElsewhere(status, victim.port) as replica,
        in_front_of(replica.port) as front,
        front.client.request(method, front.url(path), allow_redirects=False) as answer,
    ):
        assert (answer.status, (await answer.json())["code"]) == (503, "replica_broke_off")
        assert "Location" not in answer.headers
        assert victim.connections == 0


async def test_headers_of_a_model_have_no_power_over_browsers() -> None:
    async with (
        SendsHostileHeaders() as replica,
        in_front_of(replica.port) as front,
        front.client.post(front.url(INFER), data=b"{}", headers={"Origin": ORIGIN}) as answer,
    ):
        headers = answer.headers
        assert headers["Access-Control-Allow-Origin"] == ORIGIN
        assert headers["Content-Type"] == "application/octet-stream"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Request-Id"] != "forged"
        assert (headers["Retry-After"], headers["Inference-Header-Content-Length"]) == ("2", "17")
        for name in ("Set-Cookie", "Clear-Site-Data", "Refresh", "Service-Worker-Allowed"):
            assert name not in headers


# ── what is repeated


async def test_a_kept_connection_that_ends_without_an_answer_fails_nobody() -> None:
    async with ClosesReusedConnections() as replica, in_front_of(replica.port) as front:
        for _ in range(3):
            assert await front.predict() == (200, ANSWER)
        assert front.refusals == []


async def test_a_kept_connection_to_the_version_before_fails_nobody() -> None:
    async with IsReplacedByAnother() as replica, in_front_of(replica.port) as front:
        for _ in range(3):
            assert await front.predict() == (200, ANSWER)
        assert len(replica.targets) == 5
        assert front.refusals == []


@pytest.mark.parametrize(
    "part",
    [
        b"HTTP/1.1 200 O",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"no HTTP at all\r\n\r\n",
    ],
)
async def test_a_prediction_is_not_repeated_once_its_answer_has_begun(part: bytes) -> None:
    async with BreaksOffHalfway(part) as replica, in_front_of(replica.port) as front:
        assert await front.predict() == (200, ANSWER)
        with contextlib.suppress(aiohttp.ClientPayloadError):
            # Once the head is out, breaking off is all that can be done.
            status, body = await front.predict()
            assert (status, json.loads(body)["code"]) == (503, "replica_broke_off")
        assert len(replica.targets) == 2
        assert front.refusals == [KEY]


async def test_a_connection_whose_request_was_cut_short_carries_no_other() -> None:
    async with AnswersBeforeTheBody() as replica, in_front_of(replica.port) as front:
        answered = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield PIECE
            await answered.wait()
            yield PIECE

        async with front.client.post(front.url(INFER), data=body()) as answer:
            answered.set()
            assert answer.status == 413
        assert (await front.predict())[0] == 413
        assert replica.connections == 2


async def test_a_trailer_without_end_is_broken_off() -> None:
    async with SendsATrailerWithoutEnd() as replica, in_front_of(replica.port) as front:
        with contextlib.suppress(aiohttp.ClientPayloadError):
            await front.predict()
        assert await front.recorded() in ([499], [503])
        assert front.refusals == [KEY]


async def test_what_follows_an_answer_is_no_part_of_it_nor_the_next_one() -> None:
    async with AnswersTwice() as replica, in_front_of(replica.port) as front:
        for _ in range(2):
            assert await front.predict() == (200, ANSWER)
        assert replica.connections == 2


async def test_a_header_that_is_no_text_is_passed_over() -> None:
    async with Replica() as replica, in_front_of(replica.port) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n".encode()
        writer.write(head + b"Connection: close, \xff\r\n\r\n{}")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_head_request_with_a_body_that_comes_in_chunks_is_answered() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{}"

    async with (
        AnswersBeforeTheBody() as replica,
        in_front_of(replica.port) as front,
        front.client.request("HEAD", front.url("/dev/v2/models/iris"), data=body()) as answer,
    ):
        assert answer.status == 413


async def test_nobody_there_is_503() -> None:
    async with Replica() as replica:
        port = replica.port
    async with in_front_of(port) as front:
        status, body = await front.predict()
        assert (status, json.loads(body)["code"]) == (503, "replica_absent")
        assert front.refusals == [KEY]


async def test_a_replica_that_says_nothing_is_504(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.gateway._GRACE_SECONDS", 0.0)
    quick = Settings(predict_seconds=0.1)
    async with SaysNothing() as replica, in_front_of(replica.port, quick) as front:
        status, body = await front.predict()
        assert (status, json.loads(body)["code"]) == (504, "prediction_timed_out_at_gateway")
        answer = await front.client.get(front.url("/sd/replicas/r1/metrics"))
        assert (answer.status, (await answer.json())["code"]) == (503, "target_silent")


# ── callers that go away


async def test_a_caller_who_leaves_a_long_answer_is_not_the_models_error() -> None:
    async with AnswersHugeSlowly() as replica, in_front_of(replica.port) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
        writer.write(head.encode() + b"{}")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.transport.abort()
        assert await front.recorded() == [499]
        assert front.refusals == []
        assert len(replica.targets) == 1


async def test_a_caller_who_leaves_while_sending_is_not_the_models_error() -> None:
    async with Replica() as replica, in_front_of(replica.port) as front:
        _, writer = await asyncio.open_connection("127.0.0.1", front.port)
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {HUGE}\r\n\r\n"
        writer.write(head.encode() + PIECE)
        await writer.drain()
        async with asyncio.timeout(20):
            while not replica.targets:
                await asyncio.sleep(0.01)
        writer.transport.abort()
        assert await front.recorded() == [499]
        assert front.refusals == []
        assert len(replica.targets) == 1


# ── where a request goes


@pytest.mark.parametrize("authority", ["LOCALHOST", "localhost", "127.0.0.1:1"])
async def test_a_request_line_with_a_whole_address_reaches_the_replica(authority: str) -> None:
    async with Replica() as replica, in_front_of(replica.port) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        line = f"POST http://{authority}{INFER}?a=1 HTTP/1.1\r\nHost: localhost\r\n"
        writer.write(f"{line}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert replica.targets == ["/v2/models/iris/infer?a=1"]
        assert replica.hosts == [f"127.0.0.1:{replica.port}"]


@pytest.mark.parametrize(
    ("host", "address", "named"),
    [("0.0.0.0", "127.0.0.1", "127.0.0.1"), ("::", "::1", "[::1]"), ("[::]", "::1", "[::1]")],
)
async def test_replicas_behind_all_addresses_are_reached_on_this_machine(
    host: str, address: str, named: str
) -> None:
    try:
        replica = await Replica(address).open()
    except OSError:
        pytest.skip("this machine has no IPv6")
    environ = {"PERSEPHONE_HOST": host, "PERSEPHONE_INFERENCE_AUTH": "open"}
    async with (
        contextlib.aclosing(replica),
        in_front_of(replica.port, Settings.from_env(environ)) as front,
    ):
        assert await front.predict() == (200, ANSWER)
        assert replica.hosts == [f"{named}:{replica.port}"]


# ── a proxy in front


@pytest.mark.parametrize(
    ("public_url", "host", "status"),
    [
        ("", "127.0.0.1:8000", 200),
        ("http://localhost:9000", "localhost", 200),
        ("https://models.example", "models.example", 403),
        ("https://models.example", "localhost:8000", 200),
        ("https://models.example", "[::1]:8000", 200),
    ],
)
async def test_who_comes_by_the_public_name_is_a_stranger(
    public_url: str, host: str, status: int
) -> None:
    async with in_front_of(1, Settings(public_url=public_url)) as front:
        async with front.client.get(front.url("/sd"), headers={"Host": host}) as answer:
            assert answer.status == status
        if status == 403:
            assert (await front.predict())[0] == 401


# ── tokens


@pytest.mark.parametrize("auth", ["token", "open"])
@pytest.mark.parametrize(
    ("scope", "limit", "status", "code"),
    [
        (Scope.API, {}, 200, None),
        (Scope.INFERENCE, {}, 200, None),
        (Scope.INFERENCE, {"model": "iris"}, 200, None),
        (Scope.INFERENCE, {"model": "rose"}, 403, "token_for_other_model"),
        (Scope.METRICS, {}, 403, "token_scope_insufficient"),
    ],
)
async def test_a_token_predicts_what_it_is_for(
    auth: str, scope: Scope, limit: dict[str, str], status: int, code: str | None, tmp_path: Path
) -> None:
    async with desk(tmp_path) as here, Replica() as replica:
        await here.store.add_run(a_run("f" * 32, model="rose"))
        _, secret = await here.make(scope, **limit)
        settings = Settings(inference_auth=auth)
        async with in_front_of(replica.port, settings, here.tokens) as front:
            for path in (INFER, INFER.replace("iris", RUN)):
                got, body = await front.predict(path, Authorization=f"Bearer {secret}")
                assert (got, json.loads(body).get("code")) == (status, code)
        assert not any(secret in head for head in replica.heads)


async def test_a_token_of_another_owner_finds_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as here, Replica() as replica:
        _, secret = await here.make(owner="another")
        settings = Settings(inference_auth="token")
        async with in_front_of(replica.port, settings, here.tokens) as front:
            status, body = await front.predict(Authorization=f"Bearer {secret}")
            assert (status, json.loads(body)["code"]) == (404, "model_not_deployed")


@pytest.mark.parametrize("auth", ["token", "open"])
async def test_a_token_that_is_good_for_nothing_is_told_so(auth: str, tmp_path: Path) -> None:
    async with desk(tmp_path) as here, Replica() as replica:
        revoked, first = await here.make()
        await here.tokens.revoke(revoked.token_id)
        _, second = await here.make(lifetime=timedelta(seconds=1))
        here.clock.pass_(seconds=1)
        settings = Settings(inference_auth=auth)
        async with in_front_of(replica.port, settings, here.tokens) as front:
            for given, code in (
                (f"Bearer {first}", "token_revoked"),
                (f"Bearer {second}", "token_expired"),
                ("Bearer nonsense", "token_unknown"),
                ("bearer", "token_unknown"),
            ):
                async with front.client.post(
                    front.url(INFER), data=b"{}", headers={"Authorization": given}
                ) as answer:
                    body = await answer.json()
                    assert (answer.status, body["code"]) == (401, code)
                    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                    assert body["error"] == body["message"]
        assert replica.targets == []


@pytest.mark.parametrize(("auth", "status"), [("token", 401), ("open", 200)])
async def test_what_a_proxy_asks_of_its_users_is_no_token(auth: str, status: int) -> None:
    async with (
        Replica() as replica,
        in_front_of(replica.port, Settings(inference_auth=auth)) as front,
    ):
        assert (await front.predict(Authorization="Basic dTpw"))[0] == status


async def test_two_tokens_at_once_are_refused(tmp_path: Path) -> None:
    async with desk(tmp_path) as here, in_front_of(1, Settings(), here.tokens) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        lines = ["Authorization: Bearer a", "Authorization: Bearer b", "Connection: close"]
        head = "\r\n".join([f"GET {INFER[:-6]} HTTP/1.1", "Host: localhost", *lines, "", ""])
        writer.write(head.encode())
        answer = await reader.read()
        assert b"400" in answer.splitlines()[0]
        assert b"parameter_repeated" in answer
        writer.close()


@pytest.mark.parametrize(
    ("scope", "status", "code"),
    [
        (Scope.METRICS, 200, None),
        (Scope.API, 403, "token_scope_insufficient"),
        (Scope.INFERENCE, 403, "token_scope_insufficient"),
    ],
)
async def test_a_metrics_token_opens_discovery_from_afar(
    scope: Scope, status: int, code: str | None, tmp_path: Path
) -> None:
    public = Settings(public_url="https://models.example")
    async with desk(tmp_path) as here, in_front_of(1, public, here.tokens) as front:
        _, secret = await here.make(scope)
        headers = {"Host": "models.example", "Authorization": f"Bearer {secret}"}
        async with front.client.get(front.url("/sd"), headers=headers) as answer:
            body = await answer.json()
            assert answer.status == status
            assert code is None or body["code"] == code
        async with front.client.get(
            front.url("/sd"), headers={**headers, "Host": "localhost"}
        ) as answer:
            assert answer.status == 200
