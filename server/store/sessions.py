"""Sessions in the database, by the hash of their id."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import delete, insert, select

from server.store.tables import sessions

if TYPE_CHECKING:
    from server.store.database import Database


class SessionRow(NamedTuple):
    """One session: its text, and the Unix time in seconds after which it counts as gone."""

    data: str
    expires: float


class Sessions:
    """Where sessions survive a restart."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, key: str) -> SessionRow | None:
        """Return a session, expired or not, or None."""
        query = select(sessions.c.data, sessions.c.expires).where(sessions.c.key == key)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else SessionRow(*row)

    async def save(self, key: str, data: str, expires: float) -> None:
        """Insert or replace a session; durable when this returns."""
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.key == key))
            row = {"key": key, "data": data, "expires": expires}
            await connection.execute(insert(sessions).values(row))

    async def delete(self, key: str) -> None:
        """Forget a session; unknown is fine."""
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.key == key))

    async def live(self, at: float) -> list[str]:
        """Return the texts of the sessions that go on beyond ``at``, a Unix time in seconds."""
        query = select(sessions.c.data).where(sessions.c.expires >= at)
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def forget_expired(self, at: float) -> None:
        """Remove the sessions that were over at ``at``, a Unix time in seconds."""
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.expires < at))
