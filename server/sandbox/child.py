"""A started child process: its end, its output lines, its last log lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

logger = logging.getLogger(__name__)

# A passport carries its warm-up input: up to 65,536 numbers on one line, and 64 KiB of text.
LINE_BYTES = 3 * 1024 * 1024
_LOG_LINES = 200
_LOG_CHARS = 2000
# A line costs one, and one more for every 256 bytes up to what is kept of it. All replicas of an
# owner together must not keep the service busy.
_LINES_AT_ONCE = 2000
_LINES_A_SECOND = 100.0
_COST_BYTES = 256
_REST_SECONDS = 0.5
_TURN_SECONDS = 0.01

LEFT_OUT = "(lines are left out)"


async def _nothing() -> None:
    pass


def nobody(_line: str) -> None:
    """Hear a line where nobody keeps it."""


class Child:
    """A started process that leads a session; ``ended`` is awaited once, as soon as it is gone.

    ``hear`` takes each line of its log, and how it has ended.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        ended: Callable[[], Awaitable[None]] = _nothing,
        hear: Callable[[str], None] = nobody,
    ) -> None:
        self._process = process
        self._hear = hear
        self._is_killed = False
        self._said, self._logged = _Lines(process.stdout), _Lines(process.stderr)
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self._reading = asyncio.create_task(self._read_log())
        self._ending = asyncio.create_task(self._end(ended))

    @property
    def pid(self) -> int:
        """Process id of the outermost process (the sandbox, if there is one)."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code; negative for a signal, None while it runs."""
        return self._process.returncode

    async def _read_log(self) -> None:
        while (line := await self._logged.next()) is not None:
            self.log.append(line[:_LOG_CHARS])
            self._hear(line[:_LOG_CHARS])
            logger.debug("child %s: %s", self.pid, line[:_LOG_CHARS])
        code = await self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        # Not to be read as if the kernel had ended it for its memory.
        self._hear("(ended by the service)" if self._is_killed else f"(ended {how})")

    async def _end(self, ended: Callable[[], Awaitable[None]]) -> int:
        code = await self._process.wait()
        await ended()
        return code

    def watch(self, work: Coroutine[None, None, None]) -> None:
        """Do something as long as it runs."""
        watching = asyncio.create_task(work)
        self._ending.add_done_callback(lambda _: watching.cancel())

    async def line(self) -> str | None:
        """Return the next line of its output, or None at the end."""
        return await self._said.next()

    async def wait(self) -> int:
        """Wait until it has ended and its log was read."""
        code = await asyncio.shield(self._ending)
        with contextlib.suppress(TimeoutError):
            # A grandchild that was killed with it may hold the pipe a moment longer.
            async with asyncio.timeout(1):
                await asyncio.shield(self._reading)
        return code

    async def kill(self) -> None:
        """End it with everything it started; already gone is success."""
        if self._process.returncode is None:
            # Not by the process's own kill(): it asks for the exit code before, and where that is
            # there already, asyncio's watcher is left without one and says 255.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
                self._is_killed = True
        await self.wait()
        self._reading.cancel()
        # A pipe that still has more than we care to read is not at its end, and would stay open.
        self._process._transport.close()  # type: ignore[attr-defined]


class _Lines:
    """Reads a stream line by line; of what comes faster than we care to read much is dropped.

    What a child writes is no reason to read nothing else: without an end to it, each line that is
    there already would be followed by the next one at once.
    """

    def __init__(self, stream: asyncio.StreamReader | None) -> None:
        self._stream = stream
        self._left = float(_LINES_AT_ONCE)
        self._at = self._turn = time.monotonic()

    async def next(self) -> str | None:
        """Return the next line, or None at the end; a line of ours stands for those left out."""
        while self._stream is not None:
            if await self._rest_a_while():
                return LEFT_OUT
            try:
                line = await self._stream.readline()
            except ValueError:
                # A line over the limit: the reader has dropped it, and goes on after it.
                self._left -= _LINES_AT_ONCE / 2
                continue
            self._left -= min(len(line), _LOG_CHARS) / _COST_BYTES
            return line.decode(errors="replace").rstrip() if line else None
        return None

    async def _rest_a_while(self) -> bool:
        """Let others do something if it is time to; return whether something was dropped."""
        dropped = b""
        now = time.monotonic()
        more = (now - self._at) * _LINES_A_SECOND
        self._left, self._at = min(_LINES_AT_ONCE, self._left + more) - 1, now
        if self._left < 0 and self._stream is not None:
            await asyncio.sleep(_REST_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REST_SECONDS / 10):
                    dropped = await self._stream.read(2 * LINE_BYTES)
        elif now - self._turn > _TURN_SECONDS:
            # Lines that are there already are read without a wait for anything.
            await asyncio.sleep(0)
            self._turn = time.monotonic()
        return bool(dropped)
