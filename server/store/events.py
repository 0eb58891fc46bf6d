"""The events of all runs: written with the change that they tell of, read back page by page."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select

from server.store import rows, tables, timeline

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from server.records import Deployment, Event
    from server.store.database import Database

MOST_EVENTS = 1000
"""So many of a run are kept, the newest ones: a replica that crashes for ever must fill no disk."""

_STOP_WANTED = "event_stop_wanted"
_AFTER_IT = ("event_stopped", "event_deploy_wanted")

Written = dict[str, int]
"""The newest sequence number of each run that has news."""


class EventLog:
    """What happened to every run. In memory there is only the newest number of each."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest: Written = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}

    async def open(self, connection: AsyncConnection) -> None:
        """Read the newest number of every run."""
        columns = tables.events.c
        found = await connection.execute(
            select(columns.run_id, func.max(columns.sequence).label("newest")).group_by(
                columns.run_id
            )
        )
        self._newest = {row.run_id: row.newest for row in found}

    def newest(self, run_id: str) -> int:
        """Return the number of a run's newest event, 0 if it has none."""
        return self._newest.get(run_id, 0)

    async def write(
        self, connection: AsyncConnection, events: Iterable[Event], known: Collection[str]
    ) -> Written:
        """Write the events of the runs that are ``known`` within a transaction."""
        table = tables.events
        written: Written = {}
        for event in events:
            if event.run_id in known:
                made = await connection.execute(insert(table).values(rows.event_row(event)))
                [written[event.run_id]] = made.inserted_primary_key or (0,)
        for run_id in written:
            oldest_kept = (
                select(table.c.sequence)
                .where(table.c.run_id == run_id)
                .order_by(table.c.sequence.desc())
                .limit(1)
                .offset(MOST_EVENTS - 1)
                .scalar_subquery()
            )
            await connection.execute(
                delete(table).where((table.c.run_id == run_id) & (table.c.sequence < oldest_kept))
            )
        return written

    def committed(self, written: Written) -> None:
        """Let everybody know of what was written: its transaction is on the disk."""
        self._newest.update(written)
        for run_id in written:
            self._wake(run_id)

    def forget(self, run_id: str) -> None:
        """Forget a run whose events were deleted with it."""
        self._newest.pop(run_id, None)
        self._wake(run_id)

    def _wake(self, run_id: str) -> None:
        for waiter in self._waiting.get(run_id, ()):
            waiter.set()

    async def page(self, run_id: str, after: int, most: int = MOST_EVENTS) -> list[Event]:
        """Return a run's events with a number above ``after``, oldest first.

        Raises:
            UnavailableError: the database cannot be had.
        """
        columns = tables.events.c
        wanted = (
            select(tables.events)
            .where((columns.run_id == run_id) & (columns.sequence > after))
            .order_by(columns.sequence)
            .limit(most)
        )
        async with self._database.read() as connection:
            return [
                rows.event_record({**row}) for row in (await connection.execute(wanted)).mappings()
            ]

    async def is_cut(self, run_id: str, after: int) -> bool:
        """Tell whether events of a run with a number above ``after`` may be kept no more.

        Raises:
            UnavailableError: the database cannot be had.
        """
        columns = tables.events.c
        wanted = select(func.count(), func.min(columns.sequence)).where(columns.run_id == run_id)
        async with self._database.read() as connection:
            kept, oldest = (await connection.execute(wanted)).one()
        return bool(kept >= MOST_EVENTS and oldest > after)

    async def tell_stop(self, made: Deployment, known: Collection[str]) -> None:
        """Write that a deployment has stopped, if that was wanted and nothing was told since.

        Raises:
            UnavailableError: the database cannot be had.
        """
        if await self._waits_for_stop(made.run_id, made.key.environment):
            stopped = timeline.of_end(made.key, made.run_id, made.version)
            async with self._database.write() as connection:
                written = await self.write(connection, [stopped], known)
            self.committed(written)

    async def _waits_for_stop(self, run_id: str, environment: str) -> bool:
        columns = tables.events.c
        wanted = (
            select(columns.code, columns.params)
            .where((columns.run_id == run_id) & columns.code.in_([_STOP_WANTED, *_AFTER_IT]))
            .order_by(columns.sequence.desc())
        )
        async with self._database.read() as connection:
            found = (await connection.execute(wanted)).all()
        codes = (row.code for row in found if row.params.get("environment") == environment)
        return next(codes, None) == _STOP_WANTED

    async def news(self, run_id: str, after: int) -> None:
        """Wait for an event of a run with a number above ``after``, or its end."""
        if self.newest(run_id) > after:
            return
        waiter = asyncio.Event()
        waiting = self._waiting.setdefault(run_id, set())
        waiting.add(waiter)
        try:
            await waiter.wait()
        finally:
            waiting.discard(waiter)
            if not waiting:
                self._waiting.pop(run_id, None)
