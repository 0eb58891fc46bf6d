"""Starts child processes that die with the service: confined by bubblewrap where it works."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 10.0
_LOG_LINES = 200
# A passport carries its warm-up input: up to 65,536 numbers on one line.
_LINE_BYTES = 8 * 1024 * 1024
_LOG_CHARS = 2000
_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/sys/devices/system/cpu",
)
_GPU_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")
# The parent is compared once the signal is armed: a death before that would go unnoticed.
_STILL_OURS = '[ "$PPID" = "$0" ] && exec "$@"'
# The same where setpriv is not there to ask.
_DIE_WITH_PARENT = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1);os.execvp(sys.argv[2],sys.argv[2:])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One command to start and what it may see; paths are the same inside and outside.

    ``memory_bytes`` bounds the address space; zero leaves it unbounded. ``gpu`` lets the
    process reach the GPU's device nodes.
    """

    argv: Sequence[str]
    read_only: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: Sequence[int] = ()
    memory_bytes: int = 0
    gpu: bool = False


class Child:
    """A started process: its end, its output lines, its last log lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self._reading = asyncio.create_task(self._read_log())

    @property
    def pid(self) -> int:
        """Process id of the outermost process (the sandbox, if there is one)."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code; negative for a signal, None while it runs."""
        return self._process.returncode

    async def _read_log(self) -> None:
        async for line in _lines(self._process.stderr):
            self.log.append(line[:_LOG_CHARS])
            logger.debug("child %s: %s", self.pid, line[:_LOG_CHARS])

    async def line(self) -> str | None:
        """Return the next line of its output, or None at the end."""
        async for line in _lines(self._process.stdout):
            return line
        return None

    async def wait(self) -> int:
        """Wait until it has ended and its log was read."""
        code = await self._process.wait()
        with contextlib.suppress(TimeoutError):
            # A grandchild that was killed with it may hold the pipe a moment longer.
            await asyncio.wait_for(asyncio.shield(self._reading), 1)
        return code

    async def kill(self) -> None:
        """End it with everything it started; already gone is success."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.wait()
        self._reading.cancel()


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    while stream is not None:
        try:
            line = await stream.readline()
        except ValueError:
            # A line over the limit: the reader has dropped it, and goes on after it.
            continue
        if not line:
            return
        yield line.decode(errors="replace").rstrip()


class Sandbox:
    """How child processes are confined on this machine; found out once, by really doing it."""

    def __init__(self, *, bubblewrap: str | None) -> None:
        self._bubblewrap = bubblewrap

    @property
    def name(self) -> str:
        """``bubblewrap`` or ``none``."""
        return "none" if self._bubblewrap is None else "bubblewrap"

    @property
    def confines(self) -> bool:
        """Whether code inside is kept from the rest of the machine."""
        return self._bubblewrap is not None

    @classmethod
    async def probe(cls) -> Sandbox:
        """Start a real Python under bubblewrap and see whether that works."""
        found = shutil.which("bwrap")
        if found is None:
            return cls(bubblewrap=None)
        candidate = cls(bubblewrap=found)
        child = await candidate.start(
            Launch(argv=[base_python(), "-I", "-S", "-c", "import ssl"], read_only=[base_prefix()])
        )
        try:
            code = await asyncio.wait_for(child.wait(), _PROBE_SECONDS)
        except TimeoutError:
            code = None
        if code != 0:
            await child.kill()
            logger.warning("bubblewrap does not work here: %s", " | ".join(child.log) or code)
            return cls(bubblewrap=None)
        return candidate

    async def start(self, launch: Launch) -> Child:
        """Start a command that dies with the service.

        Raises:
            OSError: the program cannot be started.
        """
        argv = self._limited(launch)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(launch.env),
            cwd="/",
            pass_fds=tuple(launch.pass_fds),
            start_new_session=True,
            limit=_LINE_BYTES,
        )
        return Child(process)

    def _limited(self, launch: Launch) -> list[str]:
        limits: list[str] = []
        prlimit = shutil.which("prlimit")
        if prlimit is not None:
            limits = [prlimit, "--core=0", "--nofile=4096"]
            if launch.memory_bytes and not launch.gpu:
                limits.append(f"--as={launch.memory_bytes}")
            limits.append("--")
        argv = launch.argv
        if self._bubblewrap is not None:
            # Its own --die-with-parent is armed only once it runs.
            argv = self._confined(self._bubblewrap, launch)
        return [*dies_with_parent(), *limits, *argv]

    def _confined(self, bubblewrap: str, launch: Launch) -> list[str]:
        argv = [bubblewrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
        for name, value in launch.env.items():
            argv += ["--setenv", name, value]
        for folder in _SYSTEM_FOLDERS:
            path = Path(folder)
            if path.is_symlink():
                argv += ["--symlink", str(path.readlink()), folder]
            elif path.exists():
                argv += ["--ro-bind", folder, folder]
        argv += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108
        for name in _SYSTEM_FILES:
            argv += ["--ro-bind-try", name, name]
        if launch.gpu:
            for node in _gpu_nodes():
                argv += ["--dev-bind-try", node, node]
        for path in launch.read_only:
            argv += ["--ro-bind", str(path), str(path)]
        for path in launch.writable:
            argv += ["--bind", str(path), str(path)]
        return [*argv, "--dir", "/empty", "--chdir", "/empty", "--", *launch.argv]


def _gpu_nodes() -> list[str]:
    names = [*_GPU_NODES, *(path.name for path in Path("/dev").glob("nvidia[0-9]*"))]
    return [f"/dev/{name}" for name in names]


def dies_with_parent() -> list[str]:
    """Return what to put before a command so that it never outlives this process."""
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        shell = ["/bin/sh", "-c", _STILL_OURS, str(os.getpid())]
        return [setpriv, "--pdeathsig", "KILL", "--", *shell]
    return [base_python(), "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]


def base_python() -> str:
    """Return the interpreter that the service's own environment was made from."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def base_prefix() -> Path:
    """Return the folder in which that interpreter's library lies."""
    return Path(sys.base_prefix).resolve()
