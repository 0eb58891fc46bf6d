"""The embedded monitor's history on the disk: a file of its own, which a kill leaves whole.

It is no part of the database: it is written every few seconds, and losing it loses figures only.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from metrics.persistence import LAYOUT_DIGEST, Recorder
from server.faults import Point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from metrics.embedded import EmbeddedMonitor
    from metrics.persistence import Changes, Place, Written
    from server.faults import Reached

logger = logging.getLogger(__name__)

# So much of it a kill may take away.
_SAVE_SECONDS = 5.0
_TABLES = """
PRAGMA auto_vacuum = FULL;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA wal_autocheckpoint = 250;
CREATE TABLE IF NOT EXISTS layout (digest TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS heads (target TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
    target TEXT, tier INTEGER, start INTEGER, data BLOB NOT NULL,
    PRIMARY KEY (target, tier, start)
) WITHOUT ROWID;
"""


class HistoryFile:
    """Keeps a monitor's history. What blocks says so, and is to be called once at a time."""

    def __init__(self, monitor: EmbeddedMonitor, path: Path) -> None:
        self._monitor = monitor
        self._recorder = Recorder(monitor)
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Let the monitor go on from what was kept; what cannot be read is set aside. Blocks."""
        try:
            heads, blocks = self._read()
        except sqlite3.DatabaseError as error:
            logger.warning("the history cannot be read and is set aside: %s", error)
            self.close()
            self._set_aside()
            heads, blocks = self._read()
        rotten = {
            key for key, data in heads if not self._recorder.resume(data, blocks.get(key, {}))
        }
        # Nobody could ever go on from them.
        self._monitor.gone |= rotten
        logger.info("took up the history of %d targets", len(heads) - len(rotten))

    async def keep(self, closing: asyncio.Event, reached: Reached) -> None:
        """Keep the history every few seconds, and once more at the end."""
        while not closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_SAVE_SECONDS):
                    await closing.wait()
            for changes in self.unsaved():
                if not await asyncio.to_thread(self.save, changes):
                    self.not_saved(changes)
                    break
            reached(Point.HOUSE_HISTORY)

    def close(self) -> None:
        """Close the file; blocks."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def unsaved(self) -> Iterator[Changes]:
        """Say part by part what is to be kept, on the monitor's thread."""
        return self._recorder.unsaved()

    def not_saved(self, changes: Changes) -> None:
        """Keep these another time; on the monitor's thread."""
        self._recorder.not_saved(changes)

    def save(self, changes: Changes) -> bool:
        """Write a part down, all of it or nothing; a full disk is only logged. Blocks."""
        assert self._connection is not None  # noqa: S101 - opened before
        try:
            written = self._recorder.write(changes)
            with self._connection:
                _write(self._connection, changes.gone, written)
        except sqlite3.Error as error:
            logger.warning("the history cannot be kept: %s", error)
            return False
        return True

    def _read(self) -> tuple[list[tuple[str, bytes]], dict[str, dict[Place, bytes]]]:
        # Threads take turns; none of them is the one that opened it.
        connection = sqlite3.connect(self._path, check_same_thread=False)
        self._connection = connection
        connection.executescript(_TABLES)
        with connection:
            kept = connection.execute("SELECT digest FROM layout").fetchall()
            if kept != [(LAYOUT_DIGEST,)]:
                for table in ("layout", "heads", "blocks"):
                    connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
                connection.execute("INSERT INTO layout VALUES (?)", (LAYOUT_DIGEST,))
        blocks: dict[str, dict[Place, bytes]] = {}
        for target, tier, start, data in connection.execute("SELECT * FROM blocks"):
            blocks.setdefault(target, {})[tier, start] = data
        return connection.execute("SELECT target, data FROM heads").fetchall(), blocks

    def _set_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                old = self._path.with_name(self._path.name + suffix)
                old.replace(old.with_name(f"{old.name}.damaged"))


def _write(connection: sqlite3.Connection, gone: Iterable[str], written: Sequence[Written]) -> None:
    for table in ("heads", "blocks"):
        connection.executemany(
            f"DELETE FROM {table} WHERE target = ?",  # noqa: S608 - names of our own
            [(target,) for target in gone],
        )
    connection.executemany(
        "DELETE FROM blocks WHERE target = ? AND tier = ? AND start = ?",
        [(one.target, *place) for one in written for place in one.dropped],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)",
        [(one.target, *place, data) for one in written for place, data in one.blocks.items()],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO heads VALUES (?, ?)",
        [(one.target, one.head) for one in written],
    )
