"""Kept connections to replicas (docs/decisions/0011)."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from server.exchange import AbsentError, Exchange
from server.machine import explained


class Place(NamedTuple):
    """Where replicas listen; connections of one ``pool`` are kept for each other only."""

    host: str
    port: int
    pool: str

    @property
    def authority(self) -> str:
        """The value of the header ``Host``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Upstream:
    """Connections to replicas: kept ones by place, the one used last first."""

    def __init__(
        self, *, connect_seconds: float, silent_seconds: float, keep_seconds: float
    ) -> None:
        self._connect_seconds = connect_seconds
        self._silent_seconds = silent_seconds
        self._keep_seconds = keep_seconds
        self._kept: dict[Place, list[Exchange]] = {}
        self._open: set[Exchange] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """End every connection."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for exchange in list(self._open):
            exchange.close()
        self._open.clear()
        self._kept.clear()
        # A turn of the loop, in which the sockets are closed.
        await asyncio.sleep(0)

    def kept(self, place: Place) -> Exchange | None:
        """Take a kept connection, if there is one that is young enough."""
        kept = self._kept.get(place)
        oldest = asyncio.get_running_loop().time() - self._keep_seconds
        while kept:
            exchange = kept.pop()
            if exchange.is_usable and exchange.idle_since >= oldest:
                return exchange
            self.drop(exchange)
        return None

    async def fresh(self, place: Place) -> Exchange:
        """Open a connection.

        Raises:
            AbsentError: nobody takes it.
            UnavailableError: this machine has none to give.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, exchange = await loop.create_connection(
                    lambda: Exchange(self._silent_seconds), place.host, place.port
                )
        except OSError as error:
            # TimeoutError is one.
            raise explained(error) or AbsentError(str(error)) from error
        self._open.add(exchange)
        return exchange

    def give_back(self, place: Place, exchange: Exchange) -> None:
        """Keep a connection whose answer was read to its end, and end any other."""
        if not exchange.is_reusable:
            self.drop(exchange)
            return
        exchange.rest()
        self._kept.setdefault(place, []).append(exchange)
        if self._sweeping is None:
            loop = asyncio.get_running_loop()
            self._sweeping = loop.call_later(self._keep_seconds, self._sweep)

    def drop(self, exchange: Exchange) -> None:
        """End a connection."""
        self._open.discard(exchange)
        exchange.close()

    def _sweep(self) -> None:
        """End the connections that nobody has used for too long."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._keep_seconds
        for place, kept in list(self._kept.items()):
            young = [one for one in kept if one.is_usable and one.idle_since >= oldest]
            for exchange in kept:
                if exchange not in young:
                    self.drop(exchange)
            if young:
                self._kept[place] = young
            else:
                del self._kept[place]
        self._sweeping = loop.call_later(self._keep_seconds, self._sweep) if self._kept else None
