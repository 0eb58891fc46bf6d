"""Owners take turns, whoever has asked for how much."""

from __future__ import annotations

import asyncio

from server.pipeline.turns import Turns


class Queue:
    """Jobs of owners that note when they begin, and end when they are told."""

    def __init__(self, places: int) -> None:
        self.turns = Turns(places)
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._job(name))
        await settle()

    async def _job(self, name: str) -> None:
        async with self.turns.place(name[0]):
            self.begun.append(name)
            await self.ends[name].wait()

    async def end(self, *names: str) -> None:
        for name in names:
            self.ends[name].set()
            await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_second_owner_does_not_wait_for_all_of_the_first_one() -> None:
    queue = Queue(1)
    await queue.ask("a1", "a2", "a3", "b1", "c1", "b2")

    await queue.end("a1", "a2", "b1", "c1", "a3", "b2")

    assert queue.begun == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_who_stops_waiting_loses_nobody_a_place() -> None:
    queue = Queue(1)
    await queue.ask("a1", "a2", "b1")

    queue.tasks["a2"].cancel()
    await settle()
    queue.ends["a1"].set()
    # Given its place and cancelled in the same moment.
    await asyncio.wait([queue.tasks["a1"]])
    queue.tasks["b1"].cancel()
    await settle()
    await queue.ask("c1")

    assert queue.begun[-1] == "c1"


async def test_as_many_run_at_once_as_there_are_places() -> None:
    queue = Queue(2)
    await queue.ask("a1", "a2", "a3")
    assert queue.begun == ["a1", "a2"]

    await queue.end("a1", "a2", "a3")
    await queue.ask("b1", "b2", "b3")

    assert queue.begun == ["a1", "a2", "a3", "b1", "b2"]
    await queue.end("b1", "b2", "b3")
