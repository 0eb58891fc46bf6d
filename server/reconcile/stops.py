"""Tells of stops that had nothing to take down: the start was not over yet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from server.errors import PersephoneError
from server.states import Wanted

if TYPE_CHECKING:
    from server.records import Deployment
    from server.store.state import Store

logger = logging.getLogger(__name__)


class Stops:
    """The stops of one deployment, each told as done once, over restarts of the service too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._settled: tuple[str, int] | None = None

    async def settle(self, made: Deployment, *, is_behind: bool) -> None:
        """Say that a stopped deployment of which nothing is left has stopped, if nobody has.

        While what was seen is not kept (``is_behind``) that may still be told by itself.
        """
        if made.wanted is not Wanted.STOPPED:
            self._settled = None
        elif not is_behind and self._settled != (made.run_id, made.version):
            try:
                await self._store.tell_stop(made)
            except PersephoneError as error:
                logger.warning("the end of a stop cannot be told yet: %s", error)
            else:
                self._settled = (made.run_id, made.version)
