"""Requests that fail, and p99, while a new version takes over under load and while nothing happens.

Clients with kept connections predict without a pause between answers, paced to the same rate all
the time. Every request that has no answer 200 counts as failed, whatever the reason. An argument
is another rate in requests a second; one out of reach means without any pause.
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
QUIET_SECONDS = 6.0
AFTER_SECONDS = 4.0
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One request: when it was sent, how long it took (seconds), what went wrong."""

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
        except (OSError, EOFError, TimeoutError) as error:
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
    """All clients at once, at an even rate."""

    def __init__(self, endpoint: str, run_id: str, rate: float) -> None:
        self._rate = rate
        self.answers: list[Answered] = []
        self._clients = [Client(endpoint, run_id) for _ in range(CLIENTS)]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connections(self) -> int:
        return sum(client.connections for client in self._clients)

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._send(client, number / self._rate))
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
            began = time.perf_counter()
            failure = await client.predict()
            seconds = time.perf_counter() - began
            self.answers.append(Answered(at=began, seconds=seconds, failure=failure))
            due = max(due + CLIENTS / self._rate, began)


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
    # The old version drains after the new one was declared to serve.
    await asyncio.sleep(AFTER_SECONDS)
    ended = time.perf_counter()
    before = [one for one in load.answers if quiet <= one.at < began]
    during = [one for one in load.answers if began <= one.at < ended]
    return (before, began - quiet), (during, ended - began)


async def main() -> None:
    with scratch() as folder:
        async with service(folder) as (_, caller):
            run_id, deployed = await caller.ship(linear(), "prod")
            rate = float(sys.argv[1]) if len(sys.argv) > 1 else RATE
            load = Load(deployed["endpoint"], run_id, rate)
            load.start()
            pairs = [await hand_over(caller, load, run_id) for _ in range(ROUNDS)]
            await load.stop()
    rows = [
        row(f"{name} {number}", *part)
        for number, pair in enumerate(pairs, 1)
        for name, part in zip(("quiet", "hand-over"), pair, strict=True)
    ]
    table(("time", "requests", "failed", "requests/s", "p99 ms", "longest ms"), rows)
    failures = sorted({one.failure for one in load.answers if one.failure is not None})
    say(f"\n{load.connections} connections of {CLIENTS} clients, failures: {failures or 'none'}\n")
    failed = sum(one.failure is not None for one in load.answers)
    ratio = statistics.median(p99_ms(during[0]) / p99_ms(quiet[0]) for quiet, during in pairs)
    verdict(f"failed requests / {len(load.answers):,}", failed, "0", met=not failed)
    verdict(
        "p99 during hand-overs / quiet p99", ratio, "none; a second process starts on the cores"
    )


if __name__ == "__main__":
    run(main)
