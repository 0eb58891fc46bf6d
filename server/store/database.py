"""The database: engine, transactions, migrations."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.errors import PersephoneError, StorageFullError, UnavailableError
from server.faults import Point, Reached, nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncTransaction

logger = logging.getLogger(__name__)

UNAVAILABLE = "database_unavailable"
"""Code of a failure after which a change may have been made all the same."""

_BUSY_SECONDS = 5.0
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


# The second one: no room for the index of the write-ahead log, which is made at the start.
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})


_READ_ONLY = "persephone_read_only"


def _on_connect(connection: Any, record: Any) -> None:
    # The driver must not begin transactions by itself: its deferred BEGIN lets two writers
    # read the same row before either takes the lock, and one increment is lost.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    record.info[_READ_ONLY] = _is_read_only(cursor)
    cursor.execute(f"PRAGMA busy_timeout={round(_BUSY_SECONDS * 1000)}")
    cursor.close()


def _is_read_only(cursor: Any) -> bool:
    """Whether the file could be opened for reading only: SQLite is content with that on a failing disk.

    Such a connection would begin writes, and fail in them for as long as it lives.
    """
    cursor.execute("PRAGMA busy_timeout=0")
    try:
        cursor.execute("DELETE FROM alembic_version WHERE FALSE")
    except sqlite3.OperationalError as error:
        return _can_only_read(error)
    return False


def _can_only_read(error: Exception) -> bool:
    return _code_of(error) & 0xFF == sqlite3.SQLITE_READONLY


def _code_of(error: object) -> int:
    return int(getattr(getattr(error, "orig", error), "sqlite_errorcode", 0))


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("persephone_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _on_invalidate(connection: Any, _record: Any, _error: object) -> None:
    # It is about to be closed, as its task was cancelled in the middle of a statement. That is not
    # enough: a statement that is half read keeps a closed connection alive in SQLite, and with it
    # the write lock, until the garbage collector comes by.
    with suppress(Exception):
        connection.rollback()


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def _explaining() -> Iterator[None]:
    """Say in our words what the database refuses; what is a mistake of ours stays as it is."""
    try:
        yield
    except NoConnectionError as error:
        raise UnavailableError("database_busy") from error
    except (OperationalError, InterfaceError, sqlite3.OperationalError) as error:
        # A new connection's first words fail without SQLAlchemy's wrapping.
        known = _explained(error)
        if known.code == UNAVAILABLE:
            logger.exception("the database failed")
        raise known from error


def _explained(error: object) -> PersephoneError:
    code = _code_of(error)
    if code in _FULL:
        return StorageFullError("disk_full")
    # The extended codes carry the plain one in their lowest byte.
    return UnavailableError("database_busy" if code & 0xFF in _BUSY else UNAVAILABLE)


async def _commit(transaction: AsyncTransaction) -> None:
    """Commit to the end, also for a task that is cancelled meanwhile; it hears of that afterwards.

    Who keeps a mirror of the database in memory must not be torn away between the two.
    """
    committing = asyncio.ensure_future(transaction.commit())
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this is a coroutine of some task
    interrupted = False
    while not committing.done():
        try:
            await asyncio.wait([committing])
        except asyncio.CancelledError:
            interrupted = True
            task.uncancel()
    if interrupted:
        task.cancel()
    committing.result()


class Turn:
    """One at a time; who would wait too long is told to come back.

    Raises:
        UnavailableError: it was not had in time.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        try:
            async with asyncio.timeout(_BUSY_SECONDS):
                await self._lock.acquire()
        except TimeoutError:
            raise UnavailableError("database_busy") from None

    async def __aexit__(self, *_exc: object) -> None:
        self._lock.release()


class Database:
    """Transactions on one database; SQLite in WAL mode by default."""

    def __init__(self, url: str, *, reached: Reached = nothing) -> None:
        self._reached = reached
        self._engine: AsyncEngine = create_async_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _on_connect)
            event.listen(self._engine.sync_engine, "begin", _on_begin)
            event.listen(self._engine.sync_engine, "invalidate", _on_invalidate)

    async def open(self) -> None:
        """Bring the tables to the newest form.

        Raises:
            StorageFullError: the disk has no room for it.
            SQLAlchemyError: the database cannot be used.
            CommandError: a newer version of the service has written it.
        """
        try:
            async with self._write() as connection:
                await connection.run_sync(_migrate)
        except (OperationalError, sqlite3.OperationalError) as error:
            known = _explained(error)
            if isinstance(known, StorageFullError):
                raise known from error
            raise

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads.

        Raises:
            UnavailableError: the database cannot be had.
        """
        with _explaining():
            async with self._engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that holds the write lock from its first statement.

        Committed, and on the disk, when the block ends.

        Raises:
            StorageFullError: the disk has no room for it; nothing was changed.
            UnavailableError: the database cannot be had; nothing was changed, unless the disk failed
                just then (``database_unavailable``).
        """
        with _explaining():
            async with self._write() as connection:
                yield connection

    async def settle(self) -> None:
        """Make a change that changes nothing.

        What a disk has failed to sync may stand whole in the write-ahead log, and would count after
        a crash. The next change takes its place there.
        """
        async with self.write() as connection:
            await connection.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack() as held:
            try:
                connection, transaction = await self._begin(held)
            except (OperationalError, sqlite3.OperationalError) as error:
                if not _can_only_read(error):
                    raise
                # So SQLite opens its files on a full or failing disk, some of them for all connections
                # until the last is closed.
                await held.aclose()
                await self._engine.dispose()
                connection, transaction = await self._begin(held)
            self._reached(Point.DATABASE_BEGUN)
            yield connection
            self._reached(Point.DATABASE_WRITTEN)
            await _commit(transaction)
            self._reached(Point.DATABASE_COMMITTED)

    async def _begin(self, held: AsyncExitStack) -> tuple[AsyncConnection, AsyncTransaction]:
        plain = await held.enter_async_context(self._engine.connect())
        if (await plain.get_raw_connection()).info.get(_READ_ONLY):
            refusal = sqlite3.OperationalError("the database could only be opened for reading")
            refusal.sqlite_errorcode = sqlite3.SQLITE_READONLY
            raise refusal
        connection = await plain.execution_options(persephone_writes=True)
        return connection, await held.enter_async_context(connection.begin())
