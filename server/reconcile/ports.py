"""Which port a deployment has: its own for as long as it is wanted, and then until it is needed."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from server.engines.base import NO_PORT_LEFT, EngineError
from server.faults import Point
from server.states import Wanted

if TYPE_CHECKING:
    from datetime import datetime

    from server.engines.base import Engine
    from server.faults import Reached
    from server.records import Deployment, DeploymentKey
    from server.store.state import Store

logger = logging.getLogger(__name__)

_TAKEN = 3
"""How many stopped deployments may lose their ports for one address."""


class OwnPort:
    """Opens the address of one deployment and keeps which one it was."""

    def __init__(self, key: DeploymentKey, store: Store, engine: Engine, reached: Reached) -> None:
        self._key = key
        self._store = store
        self._engine = engine
        self._reached = reached
        self._opening = asyncio.Lock()

    async def open(self, made: Deployment) -> None:
        """Listen; where the range is used up, at the port of what has been stopped for longest.

        Raises:
            EngineError: no port is left, or the address cannot be had.
        """
        async with self._opening:
            port = await self._listen(made.port)
            self._reached(Point.DEPLOY_LISTENING)
            known = self._store.deployments[self._key]
            if port != known.port:
                # Kept before anybody is told of it: an address is for good. A candidate has no
                # other writer of what is seen until it is admitted or judged.
                await self._store.saw(replace(known, port=port))
                self._reached(Point.DEPLOY_PORT_KEPT)

    async def _listen(self, port: int) -> int:
        for taken in range(_TAKEN + 1):
            others = {other.port for other in self._store.deployments.values()}
            try:
                return await self._engine.listen(self._key, port, reserved=others)
            except EngineError as error:
                if error.code != NO_PORT_LEFT:
                    raise
                low, high = error.params["low"], error.params["high"]
                # Another program may have the port of a stopped one: few lose theirs for nothing.
                if taken == _TAKEN or not await take_back(self._store, low, high):
                    raise
        raise AssertionError("the last round returns or raises")


async def take_back(store: Store, low: int, high: int) -> bool:
    """Take the port from the deployment that was stopped first, of those in a range."""
    stopped = [made for made in store.deployments.values() if _spares(made, low, high)]
    for made in sorted(stopped, key=_stopped_at):
        # Whoever wants it again does so under this lock, and finds that it has no port any more.
        async with store.deciding(made.key):
            known = store.deployments.get(made.key)
            if known is None or not _spares(known, low, high):
                continue
            await store.saw(replace(known, port=0))
        logger.info("port %d of the stopped deployment %s is given away", made.port, made.id)
        return True
    return False


def _spares(made: Deployment, low: int, high: int) -> bool:
    # A failed one that was stopped still listens until its keeper has seen it.
    has_ended = made.serving_version is None and made.failed_version is None
    is_down = made.wanted is Wanted.STOPPED and has_ended
    return is_down and low <= made.port <= high


def _stopped_at(made: Deployment) -> datetime:
    return made.seen_at or made.wanted_at
