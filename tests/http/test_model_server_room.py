"""Connections to a replica beyond those that it holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from server.model_server import listener
from tests.support.model_replica import HANGS, ROWS, compiled_messages, running

if TYPE_CHECKING:
    from pathlib import Path

    from server.model_server.messages import Messages


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Messages:
    return compiled_messages(tmp_path_factory.mktemp("locale"))


async def test_silent_callers_keep_nobody_out(
    messages: Messages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 8)
    async with running(messages, tmp_path) as replica:
        status, _ = await replica.infer(ROWS)
        beginnings = [b"", b"POST /v2"] * 20
        silent = [await asyncio.open_connection("127.0.0.1", replica.port) for _ in beginnings]
        for (_, writer), beginning in zip(silent, beginnings, strict=True):
            writer.write(beginning)

        for _ in range(3):
            status, _ = await asyncio.wait_for(replica.infer(ROWS), 20)
            assert status == 200
        assert (await replica.order("/state", "GET"))[1]["connections"] <= 8
        for _, writer in silent:
            writer.close()


async def test_busy_callers_keep_their_places(
    messages: Messages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 1)
    async with running(messages, tmp_path) as replica:
        busy = asyncio.create_task(replica.infer([[HANGS, 0.0]]))
        await asyncio.to_thread(replica.model.entered.wait, 5)
        later = asyncio.create_task(replica.infer(ROWS))
        await asyncio.sleep(0.2)
        assert not later.done()
        replica.model.released.set()
        assert [status for status, _ in await asyncio.gather(busy, later)] == [200, 200]
