"""Runs uv and other helpers as children: generated environment, deadline, no survivors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.sandbox.descriptors import refuse_without_descriptors
from server.sandbox.launch import dies_with_parent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

# What uv needs of the operator's environment: its home, certificates and proxies. Its own
# UV_* and pip's PIP_* stay outside, so that nothing but our settings chooses where wheels
# come from.
_PASSED = frozenset(
    {"HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT", "REQUESTS_CA_BUNDLE"}
    | {"CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
    | {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
)
_OUTPUT_CHARS = 64 * 1024
_TICK_SECONDS = 1.0
_LINE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A child that has ended: its exit code and what it printed (both streams, the last part)."""

    exit_code: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How far a child is: its newest line (or none since the last time) and bytes it wrote."""

    line: str | None
    written_bytes: int


def child_environment(environ: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """Return the environment of a child: what is needed, nothing that strangers set."""
    passed = {name: value for name, value in environ.items() if name in _PASSED}
    return {
        **passed,
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "TMPDIR": str(temporary),
        # An unreachable index should be said in seconds; whoever reads it can try again.
        "UV_HTTP_RETRIES": "2",
    }


async def run(
    command: Sequence[str],
    *,
    folder: Path,
    environ: Mapping[str, str],
    watch: Callable[[Moment], Awaitable[None]] | None = None,
) -> Finished:
    """Run a child to its end; it is killed with everything it started when this is cancelled.

    ``watch`` is called for each line and at least once a second.

    Raises:
        OSError: it cannot be started.
    """
    refuse_without_descriptors()
    process = await asyncio.create_subprocess_exec(
        *dies_with_parent(),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environ),
        cwd=folder,
        start_new_session=True,
        limit=_LINE_BYTES,
    )
    try:
        output = await _follow(process, watch)
        return Finished(exit_code=await process.wait(), output=output)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _follow(
    process: asyncio.subprocess.Process, watch: Callable[[Moment], Awaitable[None]] | None
) -> str:
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    output = ""
    reading = asyncio.ensure_future(process.stdout.readline())
    try:
        while True:
            done, _ = await asyncio.wait({reading}, timeout=_TICK_SECONDS)
            line = None
            if done:
                data = _line(reading)
                if not data:
                    return output
                line = data.decode(errors="replace").rstrip()
                output = f"{output}{line}\n"[-_OUTPUT_CHARS:]
                reading = asyncio.ensure_future(process.stdout.readline())
            if watch is not None:
                written = await asyncio.to_thread(_written_bytes, process.pid)
                await watch(Moment(line=line, written_bytes=written))
    finally:
        reading.cancel()


def _line(reading: asyncio.Future[bytes]) -> bytes:
    try:
        return reading.result()
    except ValueError:
        # Over the limit: the reader has dropped it, and goes on after it.
        return b"...\n"


def _written_bytes(pid: int) -> int:
    """Return how many bytes a process has written so far; 0 where the kernel does not say."""
    try:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("wchar:"):
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 0
