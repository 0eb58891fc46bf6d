"""Who predicts at a deployment's own address: the gateway, and tokens that the replica was told."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING

import pytest

from server.model_server import admission
from tests.support.model_replica import ROWS, compiled_messages, get, running

if TYPE_CHECKING:
    from pathlib import Path

    from server.model_server.messages import Messages

REQUESTS = 'inference_requests_total{{code="{}"}}'
TOKEN_ID = "0123456789abcdef"
TOKEN = f"psk_{TOKEN_ID}_{'s' * 43}"
TOKENS = {TOKEN_ID: [hashlib.sha256(TOKEN.encode()).hexdigest(), None]}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Messages:
    return compiled_messages(tmp_path_factory.mktemp("locale"))


async def test_a_secret_keeps_strangers_out(messages: Messages, tmp_path: Path) -> None:
    async with running(messages, tmp_path, secret="s3cret") as replica:
        status, body = await replica.infer(ROWS)
        assert (status, body["code"]) == (401, "inference_needs_identification")
        wrong = {admission.SECRET_HEADER: "s3cre"}
        assert (await get(replica, "/v2", headers=wrong))[0] == 401
        right = {admission.SECRET_HEADER: "s3cret"}
        assert (await replica.infer(ROWS, headers=right))[0] == 200
        assert (await replica.figures())[REQUESTS.format("4xx")] == 1


async def test_tokens_are_taken_as_soon_as_they_are_told_and_as_long(
    messages: Messages, tmp_path: Path
) -> None:
    async with running(messages, tmp_path, secret="s3cret") as replica:
        status, body = await replica.infer(ROWS, headers=BEARER)
        assert (status, body["code"]) == (401, "inference_token_refused")

        assert await replica.order("/tokens", json=TOKENS) == (200, {"used": []})
        # Twice, on a kept connection: the second head is known by its bytes.
        for _ in range(2):
            assert (await replica.infer(ROWS, headers=BEARER))[0] == 200
        assert (await replica.infer(ROWS))[0] == 401

        assert await replica.order("/tokens", json={}) == (200, {"used": [TOKEN_ID]})
        assert (await replica.infer(ROWS, headers=BEARER))[0] == 401
        assert (await replica.order("/state", "GET"))[1]["connections"] == 1


async def test_tokens_are_known_before_the_model_is(messages: Messages, tmp_path: Path) -> None:
    async with running(messages, tmp_path, secret="s3cret", accept=False) as replica:
        await replica.order("/tokens", json=TOKENS)
        replica.replica.accept()
        assert (await replica.infer(ROWS, headers=BEARER))[0] == 200


async def test_a_token_ends_by_itself(messages: Messages, tmp_path: Path) -> None:
    digest = TOKENS[TOKEN_ID][0]
    async with running(messages, tmp_path, secret="s3cret") as replica:
        await replica.order("/tokens", json={TOKEN_ID: [digest, time.time() + 0.3]})
        async with asyncio.timeout(20):
            while (await replica.infer(ROWS, headers=BEARER))[0] == 200:
                await asyncio.sleep(0.02)
        assert (await replica.infer(ROWS, headers=BEARER))[0] == 401


@pytest.mark.parametrize("said", [b"", b"[]", b"{", b'{"a": 1}'])
async def test_tokens_that_cannot_be_read_change_nothing(
    said: bytes, messages: Messages, tmp_path: Path
) -> None:
    async with running(messages, tmp_path, secret="s3cret") as replica:
        await replica.order("/tokens", json=TOKENS)
        status, body = await replica.order("/tokens", data=said)
        assert (status, body["code"]) == (400, "request_malformed")
        assert (await replica.infer(ROWS, headers=BEARER))[0] == 200


async def test_where_everybody_may_predict_no_token_is_looked_at(
    messages: Messages, tmp_path: Path
) -> None:
    async with running(messages, tmp_path) as replica:
        assert await replica.order("/tokens", json={}) == (200, {"used": []})
        for given in (f"Bearer {TOKEN}", "Bearer nonsense"):
            assert (await replica.infer(ROWS, headers={"Authorization": given}))[0] == 200


async def test_a_head_that_is_never_the_same_is_judged_as_well(
    messages: Messages, tmp_path: Path
) -> None:
    async with running(messages, tmp_path, secret="s3cret") as replica:
        await replica.order("/tokens", json=TOKENS)
        for number in range(3):
            headers = {**BEARER, "X-Request-Id": f"r{number}"}
            assert (await replica.infer(ROWS, headers=headers))[0] == 200
        await replica.order("/tokens", json={})
        assert (await replica.infer(ROWS, headers={**BEARER, "X-Request-Id": "r9"}))[0] == 401


async def test_nothing_is_told_without_a_token(messages: Messages, tmp_path: Path) -> None:
    async with running(messages, tmp_path, secret="s3cret") as replica:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/nobody", "/x"):
            assert (await get(replica, path))[0] == 401
