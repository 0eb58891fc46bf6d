"""Probes deployments that nobody uses, so that their availability means something."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from metrics.reading import Question, positive
from server.engines.base import EngineError
from server.logs import deployment_id_var, run_id_var
from server.reconcile.keeper import NOBODY_HOME_SECONDS
from server.reconcile.starts import Starts
from server.states import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.engines.base import Replica
    from server.reconcile.reconciler import Reconciler
    from server.reconcile.scraper import Scraper
    from server.records import Deployment, DeploymentKey
    from server.store.state import Store

logger = logging.getLogger(__name__)

_AT_ONCE = 2
# A model that lets its probes hang shall not keep those of others from being counted.
_PLACE_SECONDS = 1.0
_POLL_SECONDS = 0.1
_LONGEST_PAUSE = 1.0


class Prober:
    """Sends the passport's warm-up to one replica of each idle deployment, every ``seconds``.

    It goes over the control socket, where no prediction of a caller is counted; the result is
    counted by itself. Replicas of a deployment take turns. ``seconds`` of zero is never.
    """

    def __init__(
        self,
        store: Store,
        reconciler: Reconciler,
        scraper: Scraper,
        *,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._scraper = scraper
        self._seconds = seconds
        self._clock = clock
        self._places = Starts(_AT_ONCE, seconds=_PLACE_SECONDS)
        self._due: dict[DeploymentKey, float] = {}
        self._turns: dict[DeploymentKey, int] = {}
        self._probes: dict[DeploymentKey, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to probe."""
        if self._seconds:
            self._task = asyncio.create_task(self._keep_probing())

    async def close(self) -> None:
        """Stop probing."""
        tasks = [*self._probes.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_probing(self) -> None:
        while True:
            now = self._clock()
            for key in self._due.keys() - self._store.deployments.keys():
                del self._due[key]
                self._turns.pop(key, None)
            for key, made in list(self._store.deployments.items()):
                # Where many do not answer, the places are taken for longer than a pause.
                if key in self._probes or not self._is_due(key, now) or not self._is_idle(made):
                    continue
                task = self._probes[key] = asyncio.create_task(self._probe(made))
                task.add_done_callback(partial(self._done, key))
            await asyncio.sleep(min(self._seconds / 4, _LONGEST_PAUSE))

    def _done(self, key: DeploymentKey, _task: asyncio.Task[None]) -> None:
        self._probes.pop(key, None)

    def _is_due(self, key: DeploymentKey, now: float) -> bool:
        if key not in self._due:
            # Spread, so that a hundred deployments are not probed at once.
            self._due[key] = now + self._seconds * (hash(key) % 997) / 997
        if now < self._due[key]:
            return False
        self._due[key] = now + self._seconds
        return True

    def _is_idle(self, made: Deployment) -> bool:
        """Whether it should answer, and nobody has asked it anything for a while."""
        if made.wanted is not Wanted.UP or made.serving_run_id is None:
            return False
        question = Question(
            seconds=max(self._seconds, 30.0),
            environment=made.key.environment,
            in_progress=True,
        )
        reading = self._scraper.monitor.read(made.serving_run_id, question, time.time())
        return not positive(reading.requests) and not positive(reading.in_progress)

    async def _probe(self, made: Deployment) -> None:
        run_id_var.set(made.serving_run_id or made.run_id)
        deployment_id_var.set(made.id)
        failure = await self._failure(made)
        known = self._store.deployments.get(made.key)
        if known is None or known.wanted is not Wanted.UP:
            return
        if known.serving_version != made.serving_version:
            # It was replaced meanwhile: whatever went wrong was part of that.
            return
        if failure is not None:
            logger.info(
                "%s: a probe of run %s failed: %s",
                *(made.key.environment, made.serving_run_id, failure),
            )
        self._scraper.probed(made, passed=failure is None)

    async def _failure(self, made: Deployment) -> str | None:
        """Probe once; why it failed, or None."""
        replica = await self._next_replica(made.key)
        if replica is None:
            return "no replica answers"
        try:
            async with self._places.place():
                await replica.probe()
        except EngineError as error:
            return str(error)
        return None

    async def _next_replica(self, key: DeploymentKey) -> Replica | None:
        """Return the replica whose turn it is; callers too wait a while for one that restarts."""
        deadline = self._clock() + NOBODY_HOME_SECONDS
        while not (replicas := self._reconciler.replicas(key)):
            if self._clock() >= deadline:
                return None
            await asyncio.sleep(_POLL_SECONDS)
        turn = self._turns[key] = self._turns.get(key, -1) + 1
        return replicas[turn % len(replicas)]
