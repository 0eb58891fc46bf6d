"""Timeline and logs of real processes: kills of a replica and of the service leave nothing out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.onnx_files import shifted
from tests.support.processes import replicas_of
from tests.support.service import Caller, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


class Listener:
    """Follows a run's events over restarts, as a browser does."""

    def __init__(self, caller: Caller, run_id: str) -> None:
        self.got: list[dict[str, Any]] = []
        self._caller = caller
        self._path = f"/runs/{run_id}/events"
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                await self._read()
            await asyncio.sleep(0.05)

    async def _read(self) -> None:
        headers = {"Accept": "text/event-stream"}
        if self.got:
            headers["Last-Event-ID"] = str(self.got[-1]["sequence"])
        async with self._caller.http.get(self._caller.url + self._path, headers=headers) as answer:
            async for line in answer.content:
                name, _, value = line.decode().partition(": ")
                if name == "data":
                    self.got.append(json.loads(value))

    async def until(self, code: str, count: int = 1) -> dict[str, Any]:
        """Wait until so many events of a kind came; return the newest."""
        async with asyncio.timeout(60):
            while len(found := [one for one in self.got if one["code"] == code]) < count:
                await asyncio.sleep(0.02)
        return found[-1]


async def text(caller: Caller, run_id: str) -> str:
    async with caller.http.get(f"{caller.url}/runs/{run_id}/logs") as answer:
        assert answer.status == 200
        return await answer.text()


async def test_kills_of_a_replica_and_of_the_service_are_told_once_and_leave_the_logs(
    data_dir: Path,
) -> None:
    async with running(data_dir) as (service, caller):
        run_id, _ = await caller.ship(shifted(3))
        listener = Listener(caller, run_id)
        await listener.until("event_serving")
        [replica] = replicas_of(data_dir)
        replica.kill()
        crash = await listener.until("event_replica_crashed")
        await listener.until("event_serving_again")
        assert crash["reason"] == "replica_ended"
        assert "signal 9" in crash["message"] or "137" in crash["message"]
        before = await text(caller, run_id)
        assert " load | " in before
        ends = [line for line in before.splitlines() if " dev/1/0 | (ended " in line]
        assert len(ends) == 1
        assert str(data_dir) not in before

        await service.kill()
        await service.start()
        await listener.until("event_service_restarted")
        await listener.until("event_serving_again", 2)

        assert (await text(caller, run_id)).startswith(before)
        assert listener.got == (await caller.get(f"/runs/{run_id}/events"))["events"]
        numbers = [event["sequence"] for event in listener.got]
        assert numbers == sorted(set(numbers))

        began = time.monotonic()
        assert await service.stop() == 0
        assert time.monotonic() - began < 15
        listener.task.cancel()
