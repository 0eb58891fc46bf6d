"""The database: engine, transactions, migrations."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.errors import StorageFullError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Connection


def _on_connect(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: its deferred BEGIN lets two writers
    # read the same row before either takes the lock, and one increment is lost.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("persephone_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


class Database:
    """Transactions on one database; SQLite in WAL mode by default."""

    def __init__(self, url: str) -> None:
        self._engine: AsyncEngine = create_async_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _on_connect)
            event.listen(self._engine.sync_engine, "begin", _on_begin)

    async def open(self) -> None:
        """Bring the tables to the newest form."""
        async with self.write() as connection:
            await connection.run_sync(_migrate)

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads."""
        async with self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that holds the write lock from its first statement.

        Committed, and on the disk, when the block ends.

        Raises:
            StorageFullError: the disk has no room for it; nothing was changed.
        """
        try:
            async with self._engine.connect() as plain:
                connection = await plain.execution_options(persephone_writes=True)
                async with connection.begin():
                    yield connection
        except OperationalError as error:
            if (
                isinstance(error.orig, sqlite3.OperationalError)
                and error.orig.sqlite_errorcode == sqlite3.SQLITE_FULL
            ):
                raise StorageFullError("disk_full") from error
            raise
