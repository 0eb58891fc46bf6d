"""One service with 1,000 runs, 100 of them deployed, beside one with a single deployed run.

What must not grow with them: what a poll, a scrape and a deployment cost. What may grow only with
the deployments: the start. Every deployment is a real replica; the models are small, so that the
machine holds a hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
from common import (
    Caller,
    Service,
    cookie_of,
    cpu_seconds,
    linear,
    memory_mib,
    run,
    say,
    scratch,
    service,
    table,
    verdict,
    wrk,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

RUNS, DEPLOYED = (
    int(sys.argv[place]) if len(sys.argv) > place else number
    for place, number in ((1, 1000), (2, 100))
)
ROUNDS = 5
IDLE_SECONDS = 10
# One caller owns what a hundred would.
LIMITS = {
    f"PERSEPHONE_MAX_{name}": str(RUNS + DEPLOYED)
    for name in (
        *("UPLOADS", "UPLOADS_PER_OWNER", "RUNS_PER_OWNER", "RUNS_PER_HOUR"),
        *("DEPLOYMENTS_PER_OWNER", "REPLICAS", "REPLICAS_PER_OWNER"),
    )
}
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}


async def at_once(number: int, work: Iterable[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Do all of it, so many at a time."""
    gate = asyncio.Semaphore(number)

    async def one(step: Callable[[], Awaitable[Any]]) -> Any:
        async with gate:
            return await step()

    return await asyncio.gather(*map(one, work))


class Side:
    """One service and what was measured of it."""

    def __init__(self, name: str, server: Service, caller: Caller) -> None:
        self.name = name
        self.server = server
        self.caller = caller
        self.deployments: dict[str, str] = {}
        self.figures: dict[str, list[float]] = {}

    def note(self, figure: str, value: float) -> None:
        self.figures.setdefault(figure, []).append(value)

    def median(self, figure: str) -> float:
        return statistics.median(self.figures[figure])

    async def fill(self, runs: int, deployed: int) -> None:
        """Upload so many runs and deploy the first ones, each as a model of its own."""
        await at_once(8, [self._upload] * (runs - deployed))
        await at_once(4, [self._ship] * deployed)

    async def _upload(self) -> None:
        await self.caller.upload(linear())

    async def _ship(self) -> None:
        run_id, deployed = await self.caller.ship(linear())
        self.deployments[run_id] = f"{deployed['endpoint']}/v2/models/{run_id}/infer"

    async def answer_all(self) -> None:
        """Return once every deployment has answered a prediction."""

        async def one(url: str) -> None:
            while True:
                # Refused until the address is bound again.
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    status, _ = await self.caller.call("POST", url, json={"inputs": [TENSOR]})
                    if status == 200:
                        return
                await asyncio.sleep(0.1)

        await asyncio.gather(*map(one, self.deployments.values()))

    async def restart(self) -> None:
        """Stop it and note how long the API and then all deployments are away."""
        await self.server.stop()
        began = time.perf_counter()
        await self.server.start()
        self.note("API ready, s", time.perf_counter() - began)
        await self.answer_all()
        seconds = time.perf_counter() - began
        self.note("all deployments answer, s", seconds)

    async def poll(self) -> None:
        run_id = next(iter(self.deployments))
        headers = (f"Cookie: {cookie_of(self.caller)}", "Accept-Language: ru")
        for path in ("deploy/status", "monitor/summary"):
            query = f"?runId={run_id}" + ("&env=dev" if path == "deploy/status" else "")
            url = f"{self.server.url}/{path}{query}"
            load = await wrk(url, self.server.pid, seconds=3, headers=headers)
            self.note(f"{path}, CPU µs", load.cpu_us)

    async def idle(self) -> None:
        """Note what the service costs when nobody asks: scraping and reconciling."""
        before = cpu_seconds(self.server.pid)
        await asyncio.sleep(IDLE_SECONDS)
        used = cpu_seconds(self.server.pid) - before
        self.note("idle, CPU ms/s", 1000 * used / IDLE_SECONDS)

    async def deploy(self) -> None:
        """Note how long a new version of one deployment takes beside all the others."""
        run_id = next(iter(self.deployments))
        began = time.perf_counter()
        deployed = await self.caller.deploy(run_id)
        assert deployed["phase"] == "Succeeded", deployed
        self.note("new version serves, s", time.perf_counter() - began)

    async def pages(self) -> None:
        for path in ("/metrics", "/sd", "/runs"):
            began = time.perf_counter()
            async with self.caller.http.get(self.server.url + path) as answer:
                await answer.read()
                assert answer.status == 200, path
            self.note(f"{path}, ms", 1000 * (time.perf_counter() - began))


def report(few: Side, many: Side) -> None:
    head = ("figure (median)", few.name, many.name)
    table(head, [(name, few.median(name), many.median(name)) for name in few.figures])
    say()
    for figure in ("deploy/status, CPU µs", "monitor/summary, CPU µs", "new version serves, s"):
        verdict(f"{figure}, many / few", many.median(figure) / few.median(figure), "1.00: flat")
    share = many.median("idle, CPU ms/s") / 1000
    verdict(f"core that {DEPLOYED} idle deployments take", share, "<= 0.10", met=share <= 0.1)
    metrics = many.median("/metrics, ms")
    verdict("/metrics, ms / 50 ms", metrics / 50, "<= 1.00", met=metrics <= 50)
    seconds = many.median("API ready, s")
    verdict(f"API ready with {RUNS:,} runs, s / 3 s", seconds / 3, "<= 1.00", met=seconds <= 3)


async def start(stack: AsyncExitStack, name: str, folder: Path) -> Side:
    folder.mkdir()
    return Side(name, *await stack.enter_async_context(service(folder, **LIMITS)))


async def main() -> None:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(scratch())
        few = await start(stack, "1 run, 1 deployment", folder / "few")
        name = f"{RUNS:,} runs, {DEPLOYED} deployments"
        many = await start(stack, name, folder / "many")
        await few.fill(1, 1)
        began = time.perf_counter()
        await many.fill(RUNS, DEPLOYED)
        say(f"filled in {time.perf_counter() - began:.0f} s")
        for number in range(ROUNDS):
            # Back and forth, so that no side always follows the other.
            for side in (few, many) if number % 2 else (many, few):
                for step in (side.poll, side.idle, side.deploy, side.pages):
                    await step()
        for side in (few, many):
            await side.restart()
            side.note("memory of the service, MiB", memory_mib(side.server.pid, "VmRSS"))
        report(few, many)


if __name__ == "__main__":
    run(main)
