"""Places for uploads: so many at once, and nobody holds one by sending nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from server.errors import DeadlineError
from server.pipeline.quotas import UPLOADS, UPLOADS_TOTAL, full_uploads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# How long an upload waits for a place before it is refused, and how many wait.
PATIENCE_SECONDS = 5.0
WAITING = 64
# While others wait, an upload has to be this fast over the seconds that it was waited for.
SLOW_SECONDS = 2.0
SLOW_BYTES_PER_SECOND = 16 * 1024

_LOOK_SECONDS = 0.5


class Arrival(Protocol):
    """How a body arrives."""

    @property
    def received_bytes(self) -> int:
        """Bytes so far."""

    @property
    def waited_seconds(self) -> float:
        """Time that its caller was waited for so far; our own work does not count."""


class DisplacedError(DeadlineError):
    """The upload was too slow while others waited for its place."""


class Place:
    """One upload's place; ``arrival`` is set once its body is looked at."""

    def __init__(self, owner: str, scope: asyncio.Timeout) -> None:
        self.owner = owner
        self.arrival: Arrival | None = None
        self.is_displaced = False
        self._scope = scope
        self._marked_bytes = 0
        self._marked_seconds = 0.0

    def is_slow(self) -> bool:
        """Whether it crept since it was last looked at; too short a time to tell is no."""
        if self.arrival is None:
            return False
        seconds = self.arrival.waited_seconds - self._marked_seconds
        if seconds < SLOW_SECONDS:
            return False
        received = self.arrival.received_bytes - self._marked_bytes
        self._marked_seconds = self.arrival.waited_seconds
        self._marked_bytes = self.arrival.received_bytes
        return received < seconds * SLOW_BYTES_PER_SECOND

    def displace(self) -> None:
        """End it: its body raises ``DisplacedError``."""
        if not self.is_displaced:
            self.is_displaced = True
            self._scope.reschedule(asyncio.get_running_loop().time())


class Places:
    """Who uploads now, and who waits for a place; of an owner, and in all."""

    def __init__(self, *, per_owner: int, total: int) -> None:
        self._per_owner = per_owner
        self._total = total
        self._held: set[Place] = set()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        # Granted to somebody who has not woken yet.
        self._granted: list[str] = []

    @asynccontextmanager
    async def hold(self, owner: str) -> AsyncIterator[Place]:
        """Hold a place while the block lasts.

        Raises:
            BusyError: all are taken and stay so.
            DisplacedError: the body came too slowly for those who wait.
        """
        await self._take(owner)
        scope = asyncio.timeout(None)
        place = Place(owner, scope)
        self._granted.remove(owner)
        self._held.add(place)
        try:
            async with scope:
                yield place
        except TimeoutError:
            if place.is_displaced:
                raise DisplacedError("body_too_slow") from None
            raise
        finally:
            self._held.discard(place)
            self._hand_on()

    async def _take(self, owner: str) -> None:
        if self._refusal(owner) is None:
            self._granted.append(owner)
            return
        if len(self._waiting) >= WAITING:
            self._refuse(owner)
        granted = asyncio.get_running_loop().create_future()
        waiter = (owner, granted)
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not granted.done():
                    self._displace_slow(owner)
                    await asyncio.wait([granted], timeout=_LOOK_SECONDS)
        except TimeoutError:
            if not granted.done():
                self._refuse(owner)
        except BaseException:
            if granted.done():
                self._granted.remove(owner)
                self._hand_on()
            raise
        finally:
            if not granted.done():
                self._waiting.remove(waiter)

    def _numbers(self, owner: str) -> tuple[int, int]:
        owners = [place.owner for place in self._held] + self._granted
        return owners.count(owner), len(owners)

    def _refusal(self, owner: str) -> str | None:
        own, everybody = self._numbers(owner)
        if own >= self._per_owner:
            return UPLOADS
        return UPLOADS_TOTAL if everybody >= self._total else None

    def _refuse(self, owner: str) -> None:
        own, everybody = self._numbers(owner)
        if own >= self._per_owner:
            raise full_uploads(UPLOADS, own, self._per_owner)
        raise full_uploads(UPLOADS_TOTAL, everybody, self._total)

    def _displace_slow(self, owner: str) -> None:
        """End the uploads in the way that creep; one's own where these are too many."""
        is_own = self._numbers(owner)[0] >= self._per_owner
        for place in list(self._held):
            if (not is_own or place.owner == owner) and place.is_slow():
                place.displace()
                return

    def _hand_on(self) -> None:
        """Give what is free to those who have waited longest for it."""
        for waiter in list(self._waiting):
            owner, granted = waiter
            if self._refusal(owner) is None:
                self._waiting.remove(waiter)
                self._granted.append(owner)
                granted.set_result(None)
