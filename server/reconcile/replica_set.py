"""The replicas of one version of a deployment, on their way up and while they serve."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.engines.base import EngineError
from server.errors import PersephoneError
from server.machine import explained
from server.states import Candidate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from server.engines.base import Replica

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Member:
    """One replica and how far it has come; ``ordinal`` is its place among its kind."""

    ordinal: int
    task: asyncio.Task[None] | None = None
    replica: Replica | None = None
    ended: asyncio.Task[EngineError] | None = None

    def started(self, replica: Replica, poke: Callable[[], None]) -> None:
        """Take the process that was started, and watch for its end."""
        self.replica = replica
        self.ended = asyncio.create_task(replica.ended())
        self.ended.add_done_callback(lambda _task: poke())

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self.ended is not None and not self.ended.done()

    @property
    def state(self) -> Candidate:
        """How far it has come."""
        if self.task is None or not self.task.done():
            return Candidate.STARTING
        if self.task.exception() is not None or not self.is_running:
            return Candidate.FAILED
        return Candidate.READY

    def failure(self) -> PersephoneError:
        """Return why it failed."""
        assert self.task is not None  # noqa: S101 - a member in the state FAILED has one
        error = self.task.exception()
        known = explained(error) if isinstance(error, OSError) else error
        if isinstance(known, PersephoneError):
            return known
        if error is not None:
            logger.error("a replica could not be started", exc_info=error)
            return EngineError("internal_error")
        assert self.ended is not None  # noqa: S101
        return self.ended.result()

    async def stop(self) -> None:
        """End it, wherever it is on its way."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        if self.replica is not None:
            await self.replica.stop()


class ReplicaSet:
    """Replicas of one version; all of them take traffic, or none does yet."""

    def __init__(self, version: int, run_id: str, size: int, ordinals: Iterable[int]) -> None:
        self.version = version
        self.run_id = run_id
        self._size = size
        self.members = [Member(ordinal) for ordinal in ordinals]

    def start(
        self, bring_up: Callable[[Member], Awaitable[None]], poke: Callable[[], None]
    ) -> None:
        """Bring every member up, each in a task of its own."""
        for member in self.members:
            member.task = asyncio.ensure_future(bring_up(member))
            member.task.add_done_callback(lambda _task: poke())

    @property
    def state(self) -> Candidate:
        """How far the members have come: one that failed is enough to fail."""
        states = {member.state for member in self.members}
        for state in (Candidate.FAILED, Candidate.STARTING):
            if state in states:
                return state
        return Candidate.READY

    @property
    def replicas(self) -> list[Replica]:
        """The replicas whose processes are there, by ordinal."""
        return [
            member.replica
            for member in self.members
            if member.replica is not None and member.is_running
        ]

    def failure(self) -> PersephoneError:
        """Return why the first one that failed did."""
        return next(member.failure() for member in self.members if member.state is Candidate.FAILED)

    @property
    def stood(self) -> bool:
        """Whether the process of every member that failed was started at all."""
        failed = (member for member in self.members if member.state is Candidate.FAILED)
        return all(member.replica is not None for member in failed)

    def vacant(self) -> list[int]:
        """List the ordinals, of as many replicas as were wanted, that no member has."""
        held = {member.ordinal for member in self.members}
        return [ordinal for ordinal in range(self._size) if ordinal not in held]

    def take_crashed(self) -> list[Member]:
        """Remove the members whose processes have ended, and return them."""
        crashed = [member for member in self.members if not member.is_running]
        self.members = [member for member in self.members if member.is_running]
        return crashed

    def absorb(self, other: ReplicaSet) -> None:
        """Take in further replicas of the same version."""
        self.members = sorted([*self.members, *other.members], key=lambda member: member.ordinal)

    async def admit(self) -> None:
        """Let every member take traffic.

        Raises:
            EngineError: one of them cannot.
        """
        await asyncio.gather(*(replica.admit() for replica in self.replicas))

    async def retreat(self) -> None:
        """Let no member accept a further connection."""
        await asyncio.gather(*(replica.retreat() for replica in self.replicas))

    async def drain(self, left: Callable[[Replica], Awaitable[None]]) -> None:
        """Let every member finish what it has, and end it; ``left`` is told before the end."""

        async def drain(replica: Replica) -> None:
            try:
                await replica.drain()
                await left(replica)
            finally:
                await replica.stop()

        replicas = [member.replica for member in self.members if member.replica is not None]
        await asyncio.gather(*(drain(replica) for replica in replicas))

    async def abandon(self) -> None:
        """End every member, wherever it is on its way."""
        await asyncio.gather(*(member.stop() for member in self.members))

    async def forget(self) -> None:
        """Stop watching; somebody else ends the processes."""
        tasks = [
            task
            for member in self.members
            for task in (member.task, member.ended)
            if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
