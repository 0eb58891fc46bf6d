"""Reads the replicas' metrics every few seconds, for the embedded monitor and for Prometheus."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

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

# Others have their turn after so many: a thousand would take a quarter of a second.
_GATEWAYS_AT_ONCE = 20


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


def _gateway_target(made: Deployment, run_id: str, version: int) -> Target:
    return Target(
        run_id=run_id,
        model=made.key.model,
        environment=made.key.environment,
        replica=names.GATEWAY_REPLICA,
        version=str(version),
    )


def _gateway_targets(made: Deployment) -> set[Target]:
    """Return in whose names the service itself counts: of what is wanted and of what serves."""
    found = {_gateway_target(made, made.run_id, made.version)}
    if made.serving_run_id is not None and made.serving_version is not None:
        found.add(_gateway_target(made, made.serving_run_id, made.serving_version))
    return found


class Scraper:
    """The targets there are; scrapes each of them for the embedded monitor.

    ``scraped`` is told of every scrape: whether it succeeded, and its seconds. ``changed`` is
    told that there are other targets than before.
    """

    def __init__(
        self,
        store: Store,
        monitor: EmbeddedMonitor,
        *,
        seconds: float,
        scraped: Callable[[bool, float], None],
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self.monitor = monitor
        self._seconds = seconds
        self._scraped = scraped
        self._changed = changed
        self._replicas: dict[Target, tuple[DeploymentKey, Replica]] = {}
        self._own: dict[Target, InferenceInstruments] = {}
        self._by_id: dict[str, Target] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        # Of the process behind each of the replicas: done once it has ended.
        self._ended: dict[Target, asyncio.Future[EngineError]] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to scrape."""
        self._task = asyncio.create_task(self._keep_scraping_gateways())

    async def close(self) -> None:
        """Stop scraping."""
        own = [self._task] if self._task is not None else []
        waited: list[asyncio.Future[Any]] = [*own, *self._tasks.values(), *self._ended.values()]
        for each in waited:
            each.cancel()
        await asyncio.gather(*waited, return_exceptions=True)

    def targets(self) -> list[Target]:
        """Return every target that Prometheus should scrape."""
        return list(self._by_id.values())

    def find(self, target_id: str) -> Target | None:
        """Return the target of that id."""
        return self._by_id.get(target_id)

    async def fresh_text(self, target: Target) -> str | None:
        """Scrape a target now; None if it does not answer."""
        own = self._own.get(target)
        if own is not None:
            return own.text()
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
            instruments = self._instruments(_gateway_target(made, made.run_id, made.version))
            instruments.observe(names.ERROR_CLASS, None, overloaded=True)

    def probed(self, made: Deployment, *, passed: bool) -> None:
        """Count a probe of what serves a deployment."""
        if made.serving_run_id is not None and made.serving_version is not None:
            target = _gateway_target(made, made.serving_run_id, made.serving_version)
            self._instruments(target).probe(passed=passed)

    def _instruments(self, target: Target) -> InferenceInstruments:
        found = self._own.get(target)
        if found is None:
            found = InferenceInstruments(None, started_at=time.time(), probes=True)
            self._own[target] = found
            self._expect(target)
        return found

    def _expect(self, target: Target) -> None:
        if target.id not in self._by_id:
            self._by_id[target.id] = target
            self._changed()

    async def joined(self, replica: Replica) -> None:
        """Begin to scrape a replica that takes traffic now; its first figures are zeros."""
        target = target_of(replica)
        self._replicas[target] = (replica.spec.key, replica)
        self._watch_end(target, replica)
        self._expect(target)
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

    def _watch_end(self, target: Target, replica: Replica) -> None:
        known = self._ended.pop(target, None)
        if known is not None:
            known.cancel()
        self._ended[target] = asyncio.ensure_future(replica.ended())

    def _forget(self, target: Target) -> None:
        self._replicas.pop(target, None)
        ended = self._ended.pop(target, None)
        if ended is not None:
            ended.cancel()
        self._by_id.pop(target.id, None)
        self._changed()
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
        at, began = self.monitor.now(), time.perf_counter()
        try:
            text: str | None = await replica.scrape()
        except EngineError as error:
            logger.debug("scrape of %s failed: %s", target.id, error)
            text = None
        is_up = self.monitor.ingest(target, at, text)
        self._scraped(is_up, time.perf_counter() - began)
        # One that is only too busy to answer, right after it was admitted or while it drains, is
        # scraped again.
        ended = self._ended.get(target)
        has_ended = ended is None or ended.done()
        if not is_up and has_ended and not self._may_return(target, key):
            self._forget(target)

    def _may_return(self, target: Target, key: DeploymentKey) -> bool:
        """Whether a silent replica's version is still the one that should answer."""
        made = self._store.deployments.get(key)
        return (
            made is not None
            and made.wanted is Wanted.UP
            and str(made.serving_version) == target.version
        )

    async def _keep_scraping_gateways(self) -> None:
        while True:
            try:
                await self._scrape_gateways()
            except Exception:
                logger.exception("the scrape of the gateways failed; it is tried again")
            await asyncio.sleep(self._seconds)

    async def _scrape_gateways(self) -> None:
        wanted: set[Target] = set()
        for made in self._store.deployments.values():
            if made.wanted is Wanted.UP:
                wanted |= _gateway_targets(made)
        for gone in set(self._own) - wanted:
            del self._own[gone]
            self._by_id.pop(gone.id, None)
            self._changed()
            self.monitor.drop(gone)
        for number, key in enumerate(list(self._store.deployments)):
            if number % _GATEWAYS_AT_ONCE == 0:
                await asyncio.sleep(0)
            known = self._store.deployments.get(key)
            if known is None or known.wanted is not Wanted.UP:
                continue
            for target in _gateway_targets(known):
                text = self._instruments(target).text()
                self.monitor.ingest(target, self.monitor.now(), text)


def _info(replica: Replica) -> Mapping[str, str]:
    passport = replica.spec.model.get("passport") or {}
    return {
        "framework": str(passport.get("framework", "")),
        "framework_version": str(passport.get("framework_version", "")),
        "digest": str(replica.spec.model["digest"]),
    }
