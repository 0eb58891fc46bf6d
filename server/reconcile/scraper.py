"""Reads the replicas' metrics every few seconds, for the embedded monitor and for Prometheus."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from metrics import names
from metrics.exposition import ExpositionError
from metrics.instruments import InferenceInstruments
from metrics.targets import Target, sanitise
from server.engines.base import EngineError
from server.states import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from metrics.embedded import EmbeddedMonitor
    from server.engines.base import Replica
    from server.records import Deployment, DeploymentKey
    from server.store.state import Store

logger = logging.getLogger(__name__)


def target_of(replica: Replica) -> Target:
    """Return how monitors know a replica; a restarted one keeps its labels."""
    spec = replica.spec
    return Target(
        run_id=spec.run_id,
        model=spec.key.model,
        environment=spec.key.environment,
        replica=str(spec.ordinal),
        version=str(spec.version),
    )


def _gateway_target(made: Deployment) -> Target:
    return Target(
        run_id=made.run_id,
        model=made.key.model,
        environment=made.key.environment,
        replica=names.GATEWAY_REPLICA,
        version=str(made.version),
    )


class Scraper:
    """The targets there are; scrapes each of them for the embedded monitor.

    ``scraped`` is told of every scrape: whether it succeeded, and its seconds.
    """

    def __init__(
        self,
        store: Store,
        monitor: EmbeddedMonitor,
        *,
        seconds: float,
        scraped: Callable[[bool, float], None],
    ) -> None:
        self._store = store
        self.monitor = monitor
        self._seconds = seconds
        self._scraped = scraped
        self._replicas: dict[Target, tuple[DeploymentKey, Replica]] = {}
        self._refusals: dict[Target, InferenceInstruments] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to scrape."""
        self._task = asyncio.create_task(self._scrape_gateways())

    async def close(self) -> None:
        """Stop scraping."""
        tasks = [*self._tasks.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def targets(self) -> list[Target]:
        """Return every target that Prometheus should scrape."""
        return [*self._replicas, *self._refusals]

    def find(self, target_id: str) -> Target | None:
        """Return the target of that id."""
        return next((target for target in self.targets() if target.id == target_id), None)

    async def fresh_text(self, target: Target) -> str | None:
        """Scrape a target now; None if it does not answer."""
        refusals = self._refusals.get(target)
        if refusals is not None:
            return refusals.text()
        known = self._replicas.get(target)
        if known is None:
            return None
        with suppress(EngineError, ExpositionError):
            return sanitise(await known[1].scrape(), info=_info(known[1]))
        return None

    def refused(self, key: DeploymentKey) -> None:
        """Count a prediction that was turned away because no replica could answer it."""
        made = self._store.deployments.get(key)
        if made is not None:
            self._instruments(_gateway_target(made)).observe(names.ERROR_CLASS, 0.0)

    def _instruments(self, target: Target) -> InferenceInstruments:
        found = self._refusals.get(target)
        if found is None:
            found = self._refusals[target] = InferenceInstruments(None, started_at=time.time())
        return found

    async def joined(self, replica: Replica) -> None:
        """Begin to scrape a replica that takes traffic now; its first figures are zeros."""
        target = target_of(replica)
        self._replicas[target] = (replica.spec.key, replica)
        await self._scrape(target)
        task = self._tasks.get(target)
        if task is None or task.done():
            self._tasks[target] = asyncio.create_task(self._keep_scraping(target))

    async def left(self, replica: Replica) -> None:
        """Scrape a replica that takes no more traffic once more, and forget it."""
        target = target_of(replica)
        known = self._replicas.get(target)
        if known is None or known[1] is not replica:
            return
        await self._scrape(target)
        self._forget(target)

    def _forget(self, target: Target) -> None:
        self._replicas.pop(target, None)
        self.monitor.drop(target)
        task = self._tasks.pop(target, None)
        if task is not None:
            task.cancel()

    async def _keep_scraping(self, target: Target) -> None:
        loop = asyncio.get_running_loop()
        # Spread over the interval, so that a hundred replicas are not asked at once.
        due = loop.time() + self._seconds * (hash(target) % 997) / 997
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            try:
                await self._scrape(target)
            except Exception:
                logger.exception("the scrape of %s failed; it is tried again", target.id)
            due = max(due + self._seconds, loop.time())

    async def _scrape(self, target: Target) -> None:
        known = self._replicas.get(target)
        if known is None:
            return
        key, replica = known
        at = time.time()
        try:
            text: str | None = await replica.scrape()
        except EngineError as error:
            logger.debug("scrape of %s failed: %s", target.id, error)
            text = None
        is_up = self.monitor.ingest(target, at, text)
        self._scraped(is_up, time.time() - at)
        if not is_up and not self._may_return(target, key):
            self._forget(target)

    def _may_return(self, target: Target, key: DeploymentKey) -> bool:
        """Whether a silent replica's version is still the one that should answer."""
        made = self._store.deployments.get(key)
        return (
            made is not None
            and made.wanted is Wanted.UP
            and str(made.serving_version) == target.version
        )

    async def _scrape_gateways(self) -> None:
        while True:
            wanted = {
                _gateway_target(made)
                for made in self._store.deployments.values()
                if made.wanted is Wanted.UP
            }
            for target in wanted:
                self.monitor.ingest(target, time.time(), self._instruments(target).text())
            for gone in set(self._refusals) - wanted:
                del self._refusals[gone]
                self.monitor.drop(gone)
            await asyncio.sleep(self._seconds)


def _info(replica: Replica) -> Mapping[str, str]:
    passport = replica.spec.model.get("passport") or {}
    return {
        "framework": str(passport.get("framework", "")),
        "framework_version": str(passport.get("framework_version", "")),
        "digest": str(replica.spec.model["digest"]),
    }
