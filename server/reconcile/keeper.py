"""Keeps one deployment: does the one next step until what is seen is what is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from server.engines.base import STUCK, EngineError
from server.errors import PersephoneError, UnavailableError
from server.faults import Point
from server.logs import deployment_id_var, run_id_var
from server.reconcile.backoff import Crashes
from server.reconcile.leaving import Leaving
from server.reconcile.ports import OwnPort
from server.reconcile.reasons import looping, told
from server.reconcile.replica_set import ReplicaSet
from server.reconcile.stops import Stops
from server.records import Deployment, DeploymentKey, Text
from server.states import Action, Seen, Wanted, goal, next_action
from server.store import timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from server.engines.base import Engine, Replica
    from server.reconcile.hooks import Hooks
    from server.reconcile.replica_set import Member
    from server.reconcile.starts import Starts
    from server.records import Event
    from server.store.state import Store

logger = logging.getLogger(__name__)

RESYNC_SECONDS = 5.0
# As long as a restart is quick, callers wait in the accept queue and notice nothing.
NOBODY_HOME_SECONDS = 5.0
# As long as the disk does not let them be kept.
_UNTOLD = 100
_SEEN = ("serving_version", "serving_run_id", "failed_version", "message")
_NOTHING_SEEN: dict[str, Any] = dict.fromkeys(_SEEN)


class Keeper:
    """One deployment's reconciler; its task ends when the deployment is gone."""

    def __init__(
        self,
        key: DeploymentKey,
        store: Store,
        engine: Engine,
        hooks: Hooks,
        starts: Starts,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = key
        self._store = store
        self._engine = engine
        self._hooks = hooks
        self._starts = starts
        self._clock = clock
        self._serving: ReplicaSet | None = None
        self._candidate: ReplicaSet | None = None
        self._port = OwnPort(key, store, engine, hooks.reached)
        self._crashes = Crashes()
        self._absent_since = clock()
        self._leaving = Leaving(key, store, hooks)
        self._stops = Stops(store)
        self._poked = asyncio.Event()
        self._is_behind = False
        # What happened and is not kept yet.
        self._untold: deque[Event] = deque(maxlen=_UNTOLD)

    @property
    def replicas(self) -> list[Replica]:
        """The replicas that take traffic now."""
        return [] if self._serving is None else self._serving.replicas

    def poke(self) -> None:
        """Look again now."""
        self._poked.set()

    def holds(self, run_id: str) -> bool:
        """Whether a run is served or brought up here, or what it had is still ending."""
        live = {one.run_id for one in (self._serving, self._candidate) if one is not None}
        return run_id in live or self._leaving.holds(run_id)

    def seen(self, made: Deployment) -> Seen:
        """Return what is seen of the deployment."""
        serving, candidate = self._serving, self._candidate
        return Seen(
            serving=None if serving is None else serving.version,
            is_short=serving is not None and bool(serving.vacant()),
            candidate=None if candidate is None else candidate.version,
            candidate_state=None if candidate is None else candidate.state,
            served=made.serving_version,
            failed=made.failed_version,
            backing_off=self._clock() < self._crashes.retry_at,
        )

    async def run(self) -> None:
        """Reconcile until the deployment is gone; an unforeseen error is logged and retried."""
        self._leaving.open()
        while (made := self._store.deployments.get(self._key)) is not None:
            self._poked.clear()
            run_id_var.set(made.run_id)
            deployment_id_var.set(made.id)
            began = self._clock()
            try:
                acted = await self._step(made)
                self._leaving.notice()
            except Exception:
                # The one place that must never die: everything else is judged by its result.
                logger.exception("reconciling %s failed", self._key.environment)
                acted = False
                await asyncio.sleep(1)
            if not acted:
                await self._wait(began)
        await self._leave()

    async def _wait(self, since: float) -> None:
        """Wait for a poke, or for what was not due yet when the last step began."""
        now = self._clock()
        due = (self._crashes.retry_at, self._absent_since + NOBODY_HOME_SECONDS)
        pause = min([RESYNC_SECONDS, *(max(0.0, at - now) for at in due if at > since)])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._poked.wait()

    async def _step(self, made: Deployment) -> bool:
        """Do the one next step; return whether there may be another one at once."""
        await self._notice_crashes(made)
        await self._notice_deletion()
        made = self._store.deployments.get(self._key) or made
        action = next_action(made.wanted, made.version, self.seen(made))
        with self._hooks.around(made, action):
            return await self._act(made, action)

    async def _act(self, made: Deployment, action: Action) -> bool:
        match action:
            case Action.NOTHING | Action.WAIT | Action.BACK_OFF:
                await self._attend(made)
                if action is Action.NOTHING:
                    if self._is_behind:
                        await self._saw(made)
                    await self._stops.settle(made, is_behind=self._is_behind)
                return False
            case Action.START:
                await self._start(made)
            case Action.ADMIT:
                await self._admit(made)
            case Action.JUDGE:
                await self._judge(made)
            case Action.ABANDON:
                await self._abandon()
            case Action.STOP:
                await self._stop(made)
        return True

    async def _saw(self, made: Deployment) -> None:
        """Keep what was seen; a disk that does not let us holds nothing up and is asked again."""
        known = self._store.deployments.get(self._key)
        if known is not None:
            # The port may have been given away meanwhile.
            made = replace(made, port=known.port)
        try:
            await self._store.saw(made, self._untold)
        except PersephoneError as error:
            logger.warning("what was seen of %s cannot be kept: %s", self._key.environment, error)
            # It is shown now, and kept when there is nothing else to do.
            self._store.show_seen(made)
            self._is_behind = True
        else:
            self._is_behind = False
            self._untold.clear()

    async def _attend(self, made: Deployment) -> None:
        """Answer for the replicas while there is none; close the address of a stopped one."""
        if made.wanted is Wanted.STOPPED:
            await self._engine.unlisten(self._key)
            return
        absent = self._serving is None and (
            goal(made.version, self.seen(made)) is None
            or self._clock() - self._absent_since >= NOBODY_HOME_SECONDS
        )
        if absent and made.port:
            # After a restart nobody may have listened yet for a version that failed.
            with contextlib.suppress(EngineError):
                await self._engine.listen(self._key, made.port)
        await self._engine.attend(self._key, nobody_home=absent)

    async def _start(self, made: Deployment) -> None:
        """Start a version's replicas, or those that the serving version lacks."""
        version = goal(made.version, self.seen(made))
        assert version is not None  # noqa: S101 - next_action starts only what should serve
        fresh = version == made.version
        run_id = made.run_id if fresh else made.serving_run_id or made.run_id
        ordinals: Iterable[int] = range(made.replicas)
        if self._serving is not None and self._serving.version == version:
            ordinals = self._serving.vacant()
        started = ReplicaSet(version, run_id, made.replicas, ordinals)
        started.start(lambda member: self._bring_up(made, started, member), self.poke)
        self._candidate = started

    async def _bring_up(self, made: Deployment, of: ReplicaSet, member: Member) -> None:
        await self._port.open(made)
        spec = await self._hooks.make_spec(made, of.version, of.run_id, member.ordinal)
        self._hooks.reached(Point.DEPLOY_DESCRIBED)
        async with self._starts.place():
            replica = await self._engine.start(spec)
            member.started(replica, self.poke)
            self._hooks.reached(Point.DEPLOY_SPAWNED)
            await replica.ready()
            self._hooks.reached(Point.DEPLOY_READY)

    async def _admit(self, made: Deployment) -> None:
        fresh = self._candidate
        assert fresh is not None  # noqa: S101 - next_action admits only a candidate
        await self._engine.attend(self._key, nobody_home=False)
        await fresh.admit()
        self._hooks.reached(Point.DEPLOY_ACCEPTING)
        serving = self._serving
        if serving is not None and serving.version != fresh.version:
            # Who is told that the new version serves shall not reach the old one any more.
            await serving.retreat()
            self._hooks.reached(Point.HANDOVER_RETREATED)
        await asyncio.gather(*(self._hooks.joined(replica) for replica in fresh.replicas))
        fell_back = fresh.version != made.version
        if fresh.version == made.serving_version:
            self._untold.append(timeline.of_return(self._key, fresh.run_id, fresh.version))
        try:
            await self._saw(
                replace(
                    made,
                    serving_version=fresh.version,
                    serving_run_id=fresh.run_id,
                    message=made.message if fell_back else None,
                )
            )
            self._hooks.reached(Point.DEPLOY_SEEN)
        finally:
            # Also when the service ends meanwhile: these take the traffic, the old ones no more.
            self._candidate = None
            self._take_over(fresh)
        if made.serving_version != fresh.version:
            self._hooks.ended(self._key, "succeeded")
        logger.info("%s serves version %s of run %s", *self._words(fresh))

    def _take_over(self, fresh: ReplicaSet) -> None:
        serving = self._serving
        if serving is not None and serving.version == fresh.version:
            serving.absorb(fresh)
            return
        self._serving = fresh
        if serving is not None:
            self._leaving.retire(serving)

    def _words(self, live: ReplicaSet) -> tuple[str, int, str]:
        return self._key.environment, live.version, live.run_id

    async def _judge(self, made: Deployment) -> None:
        """End a candidate that could not be brought up, or try again."""
        live = self._candidate
        assert live is not None  # noqa: S101 - next_action judges only a candidate
        failure = live.failure()
        await self._abandon()
        never_served = made.serving_version != live.version
        text = told(failure)
        logger.warning("%s: version %s of run %s failed: %s", *self._words(live), failure)
        # What the model process named itself would end the same way the next time.
        hopeless = (
            failure.permanent
            if isinstance(failure, EngineError)
            else not isinstance(failure, UnavailableError)
        )
        self._crashes.add(
            live.version, self._clock(), replicas=made.replicas, count=len(live.members)
        )
        refused = isinstance(failure, EngineError) and failure.refused
        if refused or (never_served and hopeless):
            await self._give_up(made, live.version, text)
        elif self._crashes.loops and (never_served or live.stood):
            is_crash = text.code == "replica_ended"
            await self._give_up(made, live.version, looping(text) if is_crash else text)
        else:
            # What has served is not to blame for a machine that cannot start it now.
            self._untold.append(
                timeline.of_failed_start(self._key, live.run_id, live.version, text)
            )
            await self._saw(replace(made, message=text))

    async def _give_up(self, made: Deployment, version: int, text: Text) -> None:
        self._crashes.clear()
        self._hooks.ended(self._key, "failed")
        if self._serving is not None and self._serving.version == version:
            # What is left of it would be next.
            live, self._serving = self._serving, None
            self._absent_since = self._clock()
            self._leaving.retire(live)
        self._hooks.reached(Point.DEPLOY_FAILING)
        if version == made.version:
            await self._saw(replace(made, failed_version=version, message=text))
        else:
            # The version before a failed one cannot serve either: nothing is left to try.
            await self._saw(replace(made, serving_version=None, serving_run_id=None, message=text))
        self._hooks.reached(Point.DEPLOY_FAILED)

    async def _abandon(self) -> None:
        live, self._candidate = self._candidate, None
        assert live is not None  # noqa: S101 - next_action abandons only a candidate
        await live.abandon()

    async def _stop(self, made: Deployment) -> None:
        """Take down what serves, and forget what did: there may be no process any more."""
        await self._engine.unlisten(self._key)
        self._hooks.reached(Point.STOP_CLOSED)
        live, self._serving = self._serving, None
        self._absent_since = self._clock()
        self._crashes.clear()
        try:
            if live is not None:
                await self._leaving.end(live)
            self._hooks.reached(Point.STOP_ENDED)
        finally:
            await self._saw(replace(made, **_NOTHING_SEEN))
            self._hooks.reached(Point.STOP_SEEN)
        self._hooks.ended(self._key, "stopped")

    async def _notice_crashes(self, made: Deployment) -> None:
        serving = self._serving
        crashed = [] if serving is None else serving.take_crashed()
        if serving is None or not crashed:
            return
        if not serving.members:
            self._serving = None
            self._absent_since = self._clock()
        text = Text(code="replica_ended")
        for member in crashed:
            failure = member.failure()
            text = told(failure)
            logger.warning("%s: version %s of run %s crashed: %s", *self._words(serving), failure)
            if failure.code != STUCK:
                # A hanging prediction was the caller's input; it is no reason to give up.
                self._crashes.add(serving.version, self._clock(), replicas=made.replicas)
            self._untold.append(
                timeline.of_crash(self._key, serving.run_id, serving.version, member.ordinal, text)
            )
            self._hooks.restarted(self._key)
            # Its target stays and reads as down until the replica is back.
            await member.stop()
        if self._crashes.loops:
            await self._give_up(made, serving.version, looping(text))
        else:
            await self._saw(replace(made, message=text))

    async def _notice_deletion(self) -> None:
        """Take down a deleted run that served until another one of its model is ready."""
        known = self._store.deployments.get(self._key)
        served = None if known is None else known.serving_run_id
        if known is None or served is None or served in self._store.runs:
            return
        live = self._serving
        if live is not None and live.run_id == served:
            self._serving = None
            self._absent_since = self._clock()
            self._leaving.retire(live)
        await self._saw(replace(known, serving_version=None, serving_run_id=None))

    async def close(self) -> None:
        """Let go of what is half done; the engine ends the processes."""
        await self._leaving.close()
        for live in (self._serving, self._candidate):
            if live is not None:
                await live.forget()

    async def _leave(self) -> None:
        """Take everything down: the deployment was deleted."""
        if self._candidate is not None:
            await self._abandon()
        await self._engine.unlisten(self._key)
        if self._serving is not None:
            live, self._serving = self._serving, None
            self._leaving.retire(live)
        self._leaving.notice()
        await self._leaving.wait()
