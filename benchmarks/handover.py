"""Requests that fail, and p99, while a new version takes over under load and while nothing happens.

Clients with kept connections predict, first paced to an even rate, then without a pause between
answers, which is all that one core of clients can do. A paced request is timed from the moment it
was due, so that one that had to wait for the answer before it counts its wait. Every request that
has no answer 200 counts as failed, whatever the reason. An argument is another rate in requests
a second.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from common import linear, run, say, scratch, service, table, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from common import Caller

ROUNDS = 5
CLIENTS = 16
RATE = 800
QUIET_SECONDS = 4.0
# The old version says goodbye with its next answers after the new one was declared to serve.
AFTER_SECONDS = 1.0
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One request: when it was due, how long it took from then (seconds), what went wrong."""

    at: float
    seconds: float
    failure: str | None


class Client:
    """One kept HTTP/1.1 connection after the other, as a strict client has it."""

    def __init__(self, endpoint: str, run_id: str) -> None:
        parts = urlsplit(endpoint)
        self._address = (parts.hostname, parts.port)
        body = json.dumps({"inputs": [TENSOR]}).encode()
        self._request = (
            f"POST /v2/models/{run_id}/infer HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.connections = 0

    async def predict(self) -> str | None:
        """Send one request; return what failed."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address)
                self.connections += 1
            async with asyncio.timeout(30):
                return await self._exchange(*self._streams)
        except Exception as error:  # noqa: BLE001 - whatever it is, there was no right answer
            self.close()
            return type(error).__name__

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str | None:
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
        await reader.readexactly(length)
        if "connection: close" in head:
            self.close()
        status = head.split(" ", 2)[1]
        return None if status == "200" else status

    def close(self) -> None:
        """End the connection; the next request opens another one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Load:
    """All clients at once, at an even rate (requests a second) or without a pause."""

    def __init__(self, endpoint: str, run_id: str, rate: float | None) -> None:
        self._pause = 0.0 if rate is None else CLIENTS / rate
        self.answers: list[Answered] = []
        self._clients = [Client(endpoint, run_id) for _ in range(CLIENTS)]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connections(self) -> int:
        return sum(client.connections for client in self._clients)

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._send(client, number * self._pause / CLIENTS))
            for number, client in enumerate(self._clients)
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            client.close()

    async def _send(self, client: Client, offset: float) -> None:
        due = time.perf_counter() + offset
        while True:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            failure = await client.predict()
            now = time.perf_counter()
            self.answers.append(Answered(at=due, seconds=now - due, failure=failure))
            due = due + self._pause if self._pause else now


def p99_ms(answers: Iterable[Answered]) -> float:
    return 1e3 * statistics.quantiles((one.seconds for one in answers), n=100)[98]


def row(name: str, answers: list[Answered], seconds: float) -> tuple[Any, ...]:
    failed = sum(one.failure is not None for one in answers)
    longest = 1e3 * max(one.seconds for one in answers)
    return (name, len(answers), failed, len(answers) / seconds, p99_ms(answers), longest)


async def hand_over(caller: Caller, load: Load, run_id: str) -> tuple[Any, Any]:
    """One quiet time and one hand-over; return the answers of each."""
    quiet = time.perf_counter()
    await asyncio.sleep(QUIET_SECONDS)
    began = time.perf_counter()
    deployed = await caller.deploy(run_id, "prod")
    assert deployed["phase"] == "Succeeded", deployed
    await asyncio.sleep(AFTER_SECONDS)
    ended = time.perf_counter()
    before = [one for one in load.answers if quiet <= one.at < began]
    during = [one for one in load.answers if began <= one.at < ended]
    return (before, began - quiet), (during, ended - began)


async def under(name: str, caller: Caller, load: Load, run_id: str) -> None:
    """Hand over several times under one load, and report it."""
    load.start()
    pairs = [await hand_over(caller, load, run_id) for _ in range(ROUNDS)]
    await load.stop()
    rows = [
        row(f"{part} {number}", *answers)
        for number, pair in enumerate(pairs, 1)
        for part, answers in zip(("quiet", "hand-over"), pair, strict=True)
    ]
    say(f"\n{name}\n")
    table(("time", "requests", "failed", "requests/s", "p99 ms", "longest ms"), rows)
    failures = sorted({one.failure for one in load.answers if one.failure is not None})
    say(f"\n{load.connections} connections of {CLIENTS} clients, failures: {failures or 'none'}\n")
    failed = sum(one.failure is not None for one in load.answers)
    ratio = statistics.median(p99_ms(during[0]) / p99_ms(quiet[0]) for quiet, during in pairs)
    verdict(f"{name}: failed requests of {len(load.answers):,}", failed, "0", met=not failed)
    # A second process starts on the same cores.
    verdict(f"{name}: p99 during hand-overs / quiet p99", ratio, "<= 3.00", met=ratio <= 3)


async def main() -> None:
    rate = float(sys.argv[1]) if len(sys.argv) > 1 else RATE
    with scratch() as folder:
        async with service(folder) as (_, caller):
            run_id, deployed = await caller.ship(linear(), "prod")
            loads = ((f"{rate:,.0f} requests/s", rate), ("without a pause", None))
            for name, pace in loads:
                await under(name, caller, Load(deployed["endpoint"], run_id, pace), run_id)


if __name__ == "__main__":
    run(main)
