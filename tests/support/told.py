"""A weightless service whose timeline is read as browsers and operators do."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

from server import keys
from tests.support import onnx_files
from tests.support.service import Caller
from tests.support.weightless import Machine, Model, WeightlessService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MODEL = onnx_files.linear()
STREAM = {"Accept": "text/event-stream"}


class World:
    """A weightless service and one caller."""

    def __init__(self, service: WeightlessService, caller: Caller) -> None:
        self.service = service
        self.caller = caller

    async def upload(self, content: Model = Model.SOUND) -> str:
        return await self.caller.upload(MODEL, content.value)

    async def deployed(self) -> str:
        run_id = await self.upload()
        assert (await self.caller.prepare(run_id, "cpu"))["phase"] == "Succeeded"
        assert (await self.caller.deploy(run_id))["phase"] == "Succeeded"
        return run_id

    async def cut(self) -> None:
        await self.service.cut()
        self.caller.url = self.service.url

    async def events(self, run_id: str, query: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.caller.get(f"/runs/{run_id}/events{query}"))[
            "events"
        ]
        return found

    def open(self, path: str, **headers: str) -> Any:
        url = self.caller.url + path
        return self.caller.http.get(url, headers={**STREAM, **headers})

    def say(self, run_id: str, *lines: str) -> None:
        write = self.service.app[keys.LOGS].writer(run_id, "load")
        for line in lines:
            write(line)


@asynccontextmanager
async def telling(folder: Path, **settings: Any) -> AsyncIterator[World]:
    """Run a service, and a session with it."""
    async with (
        WeightlessService(folder, Machine(), environments=("dev",), **settings) as service,
        Caller(service.url) as caller,
    ):
        yield World(service, caller)
        service.machine.let_go()


class Following:
    """Reads a stream of events as a browser does: what it got, and whether it was told the end."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.got: list[dict[str, Any]] = []
        self.ids: list[int] = []
        self.ended = False
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for line in self.answer.content:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    self.ids.append(int(value))
                elif name == "event":
                    self.ended = value == "end"
                elif name == "data" and not self.ended:
                    self.got.append(json.loads(value))
        except aiohttp.ClientError:
            return


@asynccontextmanager
async def following(world: World, run_id: str, after: int = 0) -> AsyncIterator[Following]:
    headers = {"Last-Event-ID": str(after)} if after else {}
    async with world.open(f"/runs/{run_id}/events", **headers) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        reader = Following(answer)
        try:
            yield reader
        finally:
            reader.task.cancel()


def codes(events: list[dict[str, Any]]) -> list[str]:
    return [event["code"].removeprefix("event_") for event in events]


def told(world: World, run_id: str) -> list[str]:
    """Ask the database itself: what is told has to be on the disk."""
    path = world.service._data_dir / "persephone.db"
    with sqlite3.connect(path) as connection:
        found = connection.execute(
            "SELECT code FROM events WHERE run_id = ? ORDER BY sequence", (run_id,)
        )
        return [code.removeprefix("event_") for (code,) in found]
