"""Keeps one deployment: does the one next step until what is seen is what is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from server.engines.base import STUCK, EngineError
from server.reconcile.backoff import Crashes
from server.reconcile.replica_set import ReplicaSet
from server.records import Deployment, DeploymentKey, Text
from server.states import Action, Seen, Wanted, goal, next_action

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from server.engines.base import Engine, Replica, ReplicaSpec
    from server.errors import PersephoneError
    from server.reconcile.replica_set import Member
    from server.reconcile.starts import Starts
    from server.store.state import Store

logger = logging.getLogger(__name__)

RESYNC_SECONDS = 5.0
# As long as a restart is quick, callers wait in the accept queue and notice nothing.
NOBODY_HOME_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the rest of the service does around a deployment's steps."""

    make_spec: Callable[[Deployment, int, str, int], Awaitable[ReplicaSpec]]
    joined: Callable[[Replica], Awaitable[None]]
    left: Callable[[Replica], Awaitable[None]]
    unused: Callable[[str], Awaitable[None]]
    restarted: Callable[[DeploymentKey], None]
    ended: Callable[[DeploymentKey, str], None]


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
        self._listening = asyncio.Lock()
        self._crashes = Crashes()
        self._absent_since = clock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._poked = asyncio.Event()

    @property
    def replicas(self) -> list[Replica]:
        """The replicas that take traffic now."""
        return [] if self._serving is None else self._serving.replicas

    def poke(self) -> None:
        """Look again now."""
        self._poked.set()

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
        while (made := self._store.deployments.get(self._key)) is not None:
            self._poked.clear()
            try:
                acted = await self._step(made)
            except Exception:
                # The one place that must never die: everything else is judged by its result.
                logger.exception("reconciling %s failed", self._key.environment)
                acted = False
                await asyncio.sleep(1)
            if not acted:
                await self._wait()
        await self._leave()

    async def _wait(self) -> None:
        now = self._clock()
        due = (self._crashes.retry_at, self._absent_since + NOBODY_HOME_SECONDS)
        pause = min([RESYNC_SECONDS, *(at - now for at in due if at > now)])
        try:
            await asyncio.wait_for(self._poked.wait(), pause)
        except TimeoutError:
            return

    async def _step(self, made: Deployment) -> bool:
        """Do the one next step; return whether there may be another one at once."""
        await self._notice_crashes(made)
        made = self._store.deployments.get(self._key) or made
        action = next_action(made.wanted, made.version, self.seen(made))
        match action:
            case Action.NOTHING | Action.WAIT | Action.BACK_OFF:
                await self._attend(made)
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
        await self._listen(made)
        spec = await self._hooks.make_spec(made, of.version, of.run_id, member.ordinal)
        async with self._starts.place():
            replica = await self._engine.start(spec)
            member.started(replica, self.poke)
            await replica.ready()

    async def _listen(self, made: Deployment) -> None:
        async with self._listening:
            others = {other.port for other in self._store.deployments.values()}
            port = await self._engine.listen(self._key, made.port, reserved=others)
            known = self._store.deployments[self._key]
            if port != known.port:
                # A candidate has no other writer of what is seen until it is admitted or judged.
                await self._store.saw(replace(known, port=port))

    async def _admit(self, made: Deployment) -> None:
        fresh = self._candidate
        assert fresh is not None  # noqa: S101 - next_action admits only a candidate
        await self._engine.attend(self._key, nobody_home=False)
        await fresh.admit()
        serving = self._serving
        if serving is not None and serving.version != fresh.version:
            # Who is told that the new version serves shall not reach the old one any more.
            await serving.retreat()
        await asyncio.gather(*(self._hooks.joined(replica) for replica in fresh.replicas))
        fell_back = fresh.version != made.version
        try:
            await self._store.saw(
                replace(
                    made,
                    serving_version=fresh.version,
                    serving_run_id=fresh.run_id,
                    message=made.message if fell_back else None,
                )
            )
        finally:
            # Whatever the disk says: these take the traffic, and the old ones no more.
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
            self._retire(serving)

    def _words(self, live: ReplicaSet) -> tuple[str, int, str]:
        return self._key.environment, live.version, live.run_id

    def _retire(self, live: ReplicaSet) -> None:
        task = asyncio.create_task(self._drain(live))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _drain(self, live: ReplicaSet) -> None:
        try:
            await live.drain(self._hooks.left)
        finally:
            await self._hooks.unused(live.run_id)

    async def _judge(self, made: Deployment) -> None:
        """End a candidate that could not be brought up, or try again."""
        live = self._candidate
        assert live is not None  # noqa: S101 - next_action judges only a candidate
        failure = live.failure()
        await self._abandon()
        never_served = made.serving_version != live.version
        text = Text(code=failure.code, params=_evident(failure))
        logger.warning("%s: version %s of run %s failed: %s", *self._words(live), failure)
        # What the model process named itself would end the same way the next time.
        hopeless = not isinstance(failure, EngineError) or failure.permanent
        self._crashes.add(
            live.version, self._clock(), replicas=made.replicas, count=len(live.members)
        )
        if never_served and hopeless:
            await self._give_up(made, live.version, text)
        elif self._crashes.loops:
            is_crash = text.code == "replica_ended"
            await self._give_up(made, live.version, _looping(text) if is_crash else text)
        else:
            await self._store.saw(replace(made, message=text))

    async def _give_up(self, made: Deployment, version: int, text: Text) -> None:
        self._crashes.clear()
        self._hooks.ended(self._key, "failed")
        if self._serving is not None and self._serving.version == version:
            # What is left of it would be next.
            live, self._serving = self._serving, None
            self._absent_since = self._clock()
            self._retire(live)
        if version == made.version:
            await self._store.saw(replace(made, failed_version=version, message=text))
        else:
            # The version before a failed one cannot serve either: nothing is left to try.
            await self._store.saw(
                replace(made, serving_version=None, serving_run_id=None, message=text)
            )

    async def _abandon(self) -> None:
        live, self._candidate = self._candidate, None
        assert live is not None  # noqa: S101 - next_action abandons only a candidate
        await live.abandon()
        await self._hooks.unused(live.run_id)

    async def _stop(self, made: Deployment) -> None:
        """Take down what serves, and forget what did: there may be no process any more."""
        await self._engine.unlisten(self._key)
        live, self._serving = self._serving, None
        self._absent_since = self._clock()
        self._crashes.clear()
        try:
            if live is not None:
                await self._drain(live)
        finally:
            await self._store.saw(
                replace(
                    made,
                    serving_version=None,
                    serving_run_id=None,
                    failed_version=None,
                    message=None,
                )
            )
        for run_id in {made.run_id, made.serving_run_id} - {None}:
            await self._hooks.unused(str(run_id))
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
            text = Text(code=failure.code, params=_evident(failure))
            logger.warning("%s: version %s of run %s crashed: %s", *self._words(serving), failure)
            if failure.code != STUCK:
                # A hanging prediction was the caller's input; it is no reason to give up.
                self._crashes.add(serving.version, self._clock(), replicas=made.replicas)
            self._hooks.restarted(self._key)
            # Its target stays and reads as down until the replica is back.
            await member.stop()
        if self._crashes.loops:
            await self._give_up(made, serving.version, _looping(text))
        else:
            await self._store.saw(replace(made, message=text))

    async def close(self) -> None:
        """Let go of what is half done; the engine ends the processes."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
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
            await self._drain(live)
        if self._retiring:
            await asyncio.wait(self._retiring)


def _looping(last: Text) -> Text:
    """Say that it crashes again and again, and how it did the last time."""
    reason = {"code": last.code, "params": last.params}
    return Text(code="crash_loop", params={"warnings": [reason]})


def _evident(failure: PersephoneError) -> dict[str, object]:
    evidence = getattr(failure, "evidence", "")
    return {**failure.params, "evidence": evidence} if evidence else failure.params
