"""How long owners have been out of everybody's reach, in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select

from server.store.tables import abandoned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.store.database import Database


class AbandonedOwners:
    """Seconds by owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> dict[str, float]:
        """Return all of them."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(abandoned.c.owner, abandoned.c.seconds))
            return {row.owner: row.seconds for row in rows}

    async def save(self, seconds: Mapping[str, float]) -> None:
        """Keep these in place of those before."""
        rows = [{"owner": owner, "seconds": each} for owner, each in seconds.items()]
        async with self._database.write() as connection:
            await connection.execute(delete(abandoned))
            if rows:
                await connection.execute(insert(abandoned), rows)
