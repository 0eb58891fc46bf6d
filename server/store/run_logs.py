"""The last lines that the processes of a run wrote, in a few files of bounded size."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from server.logs import redacted
from server.scrubbing import CONTROLS, without_paths
from server.store.folders import remove_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

FILE_BYTES = 256 * 1024
"""A run has two files of this size at most, the older of which is dropped for a new one."""
MOST_LINES = 1000
"""So many lines wait at most, to be written or to be sent to one reader; the newest ones stay."""
_LINE_CHARS = 2000
# A process that floods its log is written down once in this time.
_PAUSE_SECONDS = 1.0
_NAMES = ("newer.jsonl", "older.jsonl")
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CONTROL = re.compile(rf"[{CONTROLS}]")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line; ``source`` names its process, as in ``load`` or ``prod/2/0``."""

    at: datetime
    source: str
    text: str


class Follower:
    """One reader of a run's new lines; who reads too slowly misses the oldest of them."""

    def __init__(self) -> None:
        self._lines: deque[LogLine] = deque(maxlen=MOST_LINES)
        self._has_news = asyncio.Event()

    def add(self, lines: list[LogLine]) -> None:
        """Hand over new lines."""
        self._lines.extend(lines)
        if lines:
            self._has_news.set()

    def wake(self) -> None:
        """Let the reader look, though there is nothing new: it was the end."""
        self._has_news.set()

    def take(self) -> list[LogLine]:
        """Return the lines since the last time."""
        taken = list(self._lines)
        self._lines.clear()
        self._has_news.clear()
        return taken

    async def news(self) -> None:
        """Wait until there are some."""
        await self._has_news.wait()


class _Log:
    """One run's lines on their way to its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waiting: deque[LogLine] = deque(maxlen=MOST_LINES)
        self.left_out = 0
        self.followers: set[Follower] = set()
        self.files = asyncio.Lock()
        self.writing: asyncio.Task[None] | None = None
        self.is_broken = False


class RunLogs:
    """The logs of all runs below a folder; ``is_known`` tells whether a run is still there."""

    def __init__(self, root: Path, is_known: Callable[[str], bool]) -> None:
        self._root = root
        self._is_known = is_known
        self._logs: dict[str, _Log] = {}

    def writer(self, run_id: str, source: str) -> Callable[[str], None]:
        """Return what takes the lines of one process."""

        def write(text: str) -> None:
            if self._is_known(run_id):
                self._add(run_id, LogLine(datetime.now(UTC), source, text))

        return write

    def _log(self, run_id: str) -> _Log:
        log = self._logs.get(run_id)
        if log is None:
            log = self._logs[run_id] = _Log(self._root / run_id)
        return log

    def _add(self, run_id: str, line: LogLine) -> None:
        log = self._log(run_id)
        if len(log.waiting) == MOST_LINES:
            log.left_out += 1
        log.waiting.append(line)
        if log.writing is None:
            log.writing = asyncio.create_task(self._keep_writing(log))

    async def _keep_writing(self, log: _Log) -> None:
        try:
            while log.waiting:
                async with log.files:
                    await self._flush(log)
                # The first lines are written at once: they may be the last ones.
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            log.writing = None

    async def _flush(self, log: _Log) -> None:
        lines, left_out = list(log.waiting), log.left_out
        log.waiting.clear()
        log.left_out = 0
        if not lines:
            return
        written = await asyncio.to_thread(_clean, lines, left_out)
        try:
            await asyncio.to_thread(_append, log.folder, written)
            log.is_broken = False
        except OSError as error:
            if not log.is_broken:
                logger.warning("the log of run %s is not kept: %s", log.folder.name, error)
            log.is_broken = True
        for follower in log.followers:
            follower.add(written)

    async def tail(self, run_id: str, most: int = MOST_LINES) -> list[LogLine]:
        """Return the last lines of a run, oldest first; none of one that is gone."""
        if not self._is_known(run_id):
            return []
        log = self._log(run_id)
        async with log.files:
            await self._flush(log)
            return await asyncio.to_thread(_read, log.folder, most)

    @contextlib.asynccontextmanager
    async def following(self, run_id: str, most: int) -> Any:
        """Follow a run's lines: the last ones are there at once, no later one is missing or double."""
        log, follower = self._log(run_id), Follower()
        async with log.files:
            await self._flush(log)
            follower.add(await asyncio.to_thread(_read, log.folder, most))
            log.followers.add(follower)
        try:
            yield follower
        finally:
            log.followers.discard(follower)

    async def forget(self, run_id: str) -> None:
        """Delete the log of a run that is gone.

        Raises:
            OSError: something of it is left on the disk.
        """
        log = self._log(run_id)
        try:
            async with log.files:
                log.waiting.clear()
                await asyncio.to_thread(remove_folder, log.folder)
        finally:
            self._logs.pop(run_id, None)
            for follower in log.followers:
                follower.wake()

    async def close(self) -> None:
        """Write what waits."""
        for log in list(self._logs.values()):
            async with log.files:
                # It only waits now: in the middle of its work it would lose what it had taken.
                if log.writing is not None:
                    log.writing.cancel()
                await self._flush(log)


def _clean(lines: list[LogLine], left_out: int) -> list[LogLine]:
    cleaned = [LogLine(line.at, line.source, cleaned_text(line.text)) for line in lines]
    if left_out:
        first = cleaned[0]
        cleaned[0] = LogLine(first.at, first.source, f"({left_out + 1} lines are left out)")
    return cleaned


def cleaned_text(text: str) -> str:
    """Return a line of a process without paths of the machine, secrets and control characters."""
    text = _CONTROL.sub(" ", _TERMINAL.sub("", text[:_LINE_CHARS]))
    return redacted(without_paths(text)).rstrip()


def _append(folder: Path, lines: list[LogLine]) -> None:
    newer, older = (folder / name for name in _NAMES)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    rows: list[bytes] = []
    room = FILE_BYTES
    for line in reversed(lines):
        row = _written(line)
        room -= len(row)
        if room < 0:
            break
        rows.insert(0, row)
    with contextlib.suppress(FileNotFoundError):
        if newer.stat().st_size > room:
            newer.replace(older)
    with newer.open("ab") as file:
        file.write(b"".join(rows))


def _written(line: LogLine) -> bytes:
    said = {"at": line.at.isoformat(), "source": line.source, "line": line.text}
    return f"{json.dumps(said, ensure_ascii=False)}\n".encode()


def _read(folder: Path, most: int) -> list[LogLine]:
    lines = list(_kept(folder))
    return lines[len(lines) - min(most, len(lines)) :]


def _kept(folder: Path) -> Iterator[LogLine]:
    for name in reversed(_NAMES):
        try:
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for row in text.splitlines():
            # One may be cut short by a full disk, or the end of the service.
            with contextlib.suppress(ValueError, LookupError, TypeError):
                said = json.loads(row)
                at = datetime.fromisoformat(said["at"])
                yield LogLine(at, str(said["source"]), str(said["line"]))
