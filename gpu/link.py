"""The parent's end of the process that reads NVML: start it, ask it, give it up."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import TYPE_CHECKING

from gpu.devices import Reading, from_json

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping, Sequence

ANSWER_BYTES = 1024 * 1024
CLOSE_SECONDS = 1.0


class LinkError(Exception):
    """The process ended or answered something that is no reading."""


def child_command() -> list[str]:
    """Return the command line of the process that reads NVML for this one."""
    return [sys.executable, "-P", "-m", "gpu.child", str(os.getpid())]


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` with the path to this very package; LD_LIBRARY_PATH stays as it is."""
    return {**environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


class Link:
    """One reading process at a time, started when it is first asked."""

    def __init__(
        self, command: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        """Take another command or environment than this process's own, if given."""
        self._command = command
        self._environ = environ
        self._process: Process | None = None
        self._ending: set[asyncio.Task[int]] = set()

    @property
    def pid(self) -> int | None:
        """Process id of the running child, or None."""
        return None if self._process is None else self._process.pid

    async def read(self) -> Reading:
        """Ask for one reading and wait for it as long as it takes.

        Raises:
            LinkError: the process ended, or answered something else.
            OSError: the process cannot be started.
        """
        if self._process is None:
            self._process = await self._start()
        process = self._process
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        try:
            process.stdin.write(b"read\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
        except (ConnectionError, ValueError) as error:
            raise LinkError(str(error)) from error
        if not line.endswith(b"\n"):
            raise LinkError("the process that reads NVML has ended")
        try:
            return from_json(json.loads(line))
        except (KeyError, TypeError, ValueError) as error:
            raise LinkError("the process that reads NVML answered no reading") from error

    def abandon(self) -> None:
        """Kill the process without waiting: inside a hanging driver not even a kill ends it."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        task = asyncio.ensure_future(process.wait())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End the process; returns within two seconds whatever the driver does."""
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None  # noqa: S101 - a pipe
            process.stdin.close()
            waiting = asyncio.ensure_future(process.wait())
            await asyncio.wait({waiting}, timeout=CLOSE_SECONDS)
            waiting.cancel()
        self.abandon()
        if self._ending:
            _, stuck = await asyncio.wait(self._ending, timeout=CLOSE_SECONDS)
            for task in stuck:
                task.cancel()

    async def _start(self) -> Process:
        command = self._command or child_command()
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=PIPE,
            limit=ANSWER_BYTES,
            cwd="/",
            env=child_environment(os.environ if self._environ is None else self._environ),
        )
