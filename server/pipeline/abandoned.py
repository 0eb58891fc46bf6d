"""Takes away the runs that nobody can reach any more, after a long while."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from server.errors import PersephoneError
from server.states import Phase, Wanted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from server.records import Run
    from server.store.abandoned import AbandonedOwners
    from server.store.state import Store

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3600.0


class Abandoned:
    """Waits ``keep_seconds`` for owners without a session or a token, then deletes their runs.

    What is deployed stays and serves on. ``reachable`` returns the owners that somebody can act
    for, ``delete`` takes a run away. The waiting is counted in time that the service has seen
    pass, so that no clock which jumps ends it; ``keep_seconds`` of zero never does.
    """

    def __init__(
        self,
        store: Store,
        owners: AbandonedOwners,
        reachable: Callable[[], Awaitable[Collection[str | None]]],
        delete: Callable[[Run], Awaitable[None]],
        *,
        keep_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._owners = owners
        self._reachable = reachable
        self._delete = delete
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._looked_at = clock()

    async def attend(self) -> None:
        """Look once an hour."""
        if not self._keep_seconds:
            return
        passed = self._clock() - self._looked_at
        if passed < LOOK_SECONDS:
            return
        waited = await self._wait(passed)
        self._looked_at = self._clock()
        for owner, seconds in waited.items():
            if seconds >= self._keep_seconds:
                await self._delete_runs(owner)

    async def _wait(self, passed: float) -> dict[str, float]:
        before = await self._owners.load()
        reachable = await self._reachable()
        gone = {run.owner for run in self._store.runs.values()}.difference(reachable)
        waited = {owner: before[owner] + passed if owner in before else 0.0 for owner in gone}
        if waited != before:
            await self._owners.save(waited)
        for owner in gone - before.keys():
            logger.info(
                "nobody can reach the runs %s any more: their session has ended and there is no "
                "token; those that are not deployed are deleted in %.1f days",
                ", ".join(run.run_id for run in self._store.runs_of(owner)[:10]),
                self._keep_seconds / 86400,
            )
        return waited

    async def _delete_runs(self, owner: str) -> None:
        for run in self._store.runs_of(owner):
            # The operator may have made a token for the owner in this moment.
            if owner in await self._reachable():
                return
            if self._is_in_use(run):
                continue
            try:
                await self._delete(run)
            except PersephoneError as error:
                logger.warning("the run %s, which is abandoned, stays: %s", run.run_id, error)
            else:
                logger.warning(
                    "the run %s of %s was deleted: nobody could have reached it for %.1f days",
                    run.run_id,
                    run.created_at.date(),
                    self._keep_seconds / 86400,
                )

    def _is_in_use(self, run: Run) -> bool:
        made = self._store.deployments_of(run.run_id)
        is_deployed = any(
            each.wanted is Wanted.UP or each.serving_run_id == run.run_id for each in made
        )
        return is_deployed or self._store.preparation(run.run_id).phase is Phase.RUNNING
