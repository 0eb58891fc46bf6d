"""Which tokens predict at a deployment's own address: told to its replicas until they know."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from server.engines.base import EngineError
from server.sandbox.events import read_event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from server.records import Admitted

# A replica is asked even if there is nothing to tell: which tokens were used there.
_ASK_SECONDS = 30.0
_RETRY_SECONDS = 0.5
# One that never listens is asked less often, until there is something new to tell.
_LONGEST_RETRY_SECONDS = 2.0


class Teller:
    """Tells one replica; the only one who does, so that no older word overtakes a newer one.

    ``tell`` hands the tokens over and returns the status and the body of the answer; it raises
    EngineError and nothing else.
    """

    def __init__(
        self,
        tell: Callable[[Admitted], Awaitable[tuple[int, bytes]]],
        admitted: Callable[[], Admitted],
        used: Callable[[str], None],
    ) -> None:
        self._tell = tell
        self._admitted = admitted
        self._used = used
        self._changed = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._is_over = False
        self._task = asyncio.create_task(self._run())

    async def renew(self, seconds: float) -> None:
        """Tell the replica what holds now; returns once it knows, or has ended.

        Raises:
            EngineError: it did not listen for so many seconds; it is told again.
        """
        if self._is_over:
            return
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(told)
        self._changed.set()
        try:
            async with asyncio.timeout(seconds):
                await told
        except TimeoutError:
            raise EngineError("replica_silent", evidence="tokens") from None

    def close(self) -> None:
        """Tell it nothing more: it has ended."""
        self._is_over = True
        self._task.cancel()
        self._release(len(self._waiting))

    async def _run(self) -> None:
        retry = _RETRY_SECONDS
        while True:
            self._changed.clear()
            count = len(self._waiting)
            admitted = self._admitted()
            try:
                status, body = await self._tell(admitted)
                used = _used(status, body)
            except EngineError:
                await self._pause(retry)
                retry = min(2 * retry, _LONGEST_RETRY_SECONDS)
                continue
            retry = _RETRY_SECONDS
            # Its word counts for no other tokens than those that it was told.
            for token_id in admitted.keys() & used:
                self._used(token_id)
            self._release(count)
            await self._pause(_ASK_SECONDS)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _release(self, count: int) -> None:
        for told in self._waiting[:count]:
            if not told.done():
                told.set_result(None)
        del self._waiting[:count]


def _used(status: int, body: bytes) -> set[str]:
    """Read the ids of the tokens that were used since the last time.

    Raises:
        EngineError: the replica did not take what it was told.
    """
    try:
        said = read_event(body)["used"] if status == 200 else None
    except (ValueError, KeyError):
        said = None
    if not isinstance(said, list):
        raise EngineError("replica_silent", evidence=f"status {status}")
    return {token_id for token_id in said if isinstance(token_id, str)}
