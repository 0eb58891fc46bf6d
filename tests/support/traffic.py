"""Clients that never pause, on kept connections, and count everything that goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


@dataclass
class Traffic:
    """What came back: how often each value, each status with its code, each broken connection."""

    values: Counter[float] = field(default_factory=Counter)
    refusals: Counter[tuple[int, str]] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)

    @property
    def answered(self) -> int:
        """How many predictions were answered."""
        return self.values.total()

    async def more(self, count: int) -> None:
        """Wait for so many further answers."""
        wanted = self.answered + count
        async with asyncio.timeout(60):
            while self.answered < wanted:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def traffic(
    urls: Sequence[str], body: dict[str, Any], clients: int = 3, pause: float = 0.002
) -> AsyncIterator[Traffic]:
    """Send ``body`` to every URL from several clients for as long as the block lasts."""
    found = Traffic()
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for url in urls:
            for _ in range(clients):
                group.create_task(_client(url, body, found, ended, pause))
        try:
            yield found
        finally:
            ended.set()


async def _client(
    url: str, body: dict[str, Any], found: Traffic, ended: asyncio.Event, pause: float
) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        while not ended.is_set():
            try:
                async with session.post(url, json=body) as answer:
                    content = await answer.json()
            except (aiohttp.ClientError, OSError) as error:
                found.broken[type(error).__name__] += 1
                await asyncio.sleep(0.02)
                continue
            if answer.status == 200:
                found.values[content["outputs"][0]["data"][0]] += 1
            else:
                found.refusals[answer.status, str(content.get("code"))] += 1
                await asyncio.sleep(0.02)
            await asyncio.sleep(pause)
