"""Starts child processes that die with the service: confined by bubblewrap where it works."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
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
_FILES = 4096
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


_TMP_BYTES = 1024**3
_SHARED_MEMORY_BYTES = 256 * 1024**2
# The strictest first. Without user namespaces root can still do without its capabilities.
_NAMESPACES = (("--unshare-user", "--disable-userns"), ("--unshare-user",), ())
# Root owns its files inside too, and in /proc/sys the switches of the whole machine.
_PROBE = (
    "import os, ssl, sys\n"
    "with open('/proc/self/status') as file:\n"
    "    rights = [int(line.split()[1], 16) for line in file if line.startswith('CapEff:')]\n"
    "closed = [os.statvfs(path).f_flag & os.ST_RDONLY for path in ('/', '/proc')]\n"
    "sys.exit(0 if rights == [0] and all(closed) else 'what runs inside keeps rights')\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One command to start and what it may see; paths are the same inside and outside.

    ``memory_bytes`` bounds the address space and ``file_bytes`` each file that is written; zero
    leaves it unbounded. ``gpu`` lets the process reach the GPU's device nodes.
    """

    argv: Sequence[str]
    read_only: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: Sequence[int] = ()
    memory_bytes: int = 0
    file_bytes: int = 0
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

    def __init__(
        self, *, bubblewrap: str | None, namespaces: Sequence[str] = (), sizes: bool = False
    ) -> None:
        self._bubblewrap = bubblewrap
        self._namespaces = tuple(namespaces)
        self._sizes = sizes

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
        """Start a real Python under bubblewrap: it has to work, and to be without rights."""
        found = shutil.which("bwrap")
        if found is None:
            return cls(bubblewrap=None)
        offered = await _options_of(found)
        problem = ""
        for namespaces in _NAMESPACES:
            if offered.issuperset(namespaces):
                candidate = cls(bubblewrap=found, namespaces=namespaces, sizes="--size" in offered)
                problem = await candidate._problem()
                if not problem:
                    return candidate
        logger.warning("bubblewrap does not work here: %s", problem)
        return cls(bubblewrap=None)

    async def _problem(self) -> str:
        argv = [base_python(), "-I", "-S", "-c", _PROBE]
        child = await self.start(Launch(argv=argv, read_only=[base_prefix()]))
        try:
            code = await asyncio.wait_for(child.wait(), _PROBE_SECONDS)
        except TimeoutError:
            await child.kill()
            return f"no end within {_PROBE_SECONDS:.0f} s"
        return "" if code == 0 else " | ".join(child.log) or f"exit code {code}"

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
            limits = [prlimit, "--core=0", f"--nofile={_at_most(resource.RLIMIT_NOFILE, _FILES)}"]
            if launch.memory_bytes and not launch.gpu:
                limits.append(f"--as={_at_most(resource.RLIMIT_AS, launch.memory_bytes)}")
            if launch.file_bytes:
                limits.append(f"--fsize={_at_most(resource.RLIMIT_FSIZE, launch.file_bytes)}")
            limits.append("--")
        if self._bubblewrap is not None:
            # Killed before its inner half runs, it would leave that waiting for ever: its own
            # --die-with-parent comes late enough, and a model process looks for us once it runs.
            return [*limits, *self._confined(self._bubblewrap, launch)]
        return [*dies_with_parent(), *limits, *launch.argv]

    def _confined(self, bubblewrap: str, launch: Launch) -> list[str]:
        argv = [bubblewrap, "--unshare-all", *self._namespaces, "--cap-drop", "ALL"]
        argv += ["--die-with-parent", "--new-session", "--clearenv"]
        for name, value in launch.env.items():
            argv += ["--setenv", name, value]
        for folder in _SYSTEM_FOLDERS:
            path = Path(folder)
            if path.is_symlink():
                argv += ["--symlink", str(path.readlink()), folder]
            elif path.exists():
                argv += ["--ro-bind", folder, folder]
        argv += ["--proc", "/proc", "--dev", "/dev"]
        argv += [*self._sized(_TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
        argv += [*self._sized(_SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
        for name in _SYSTEM_FILES:
            argv += ["--ro-bind-try", name, name]
        if launch.gpu:
            for node in _gpu_nodes():
                argv += ["--dev-bind-try", node, node]
        for path in launch.read_only:
            argv += ["--ro-bind", str(path), str(path)]
        for path in launch.writable:
            argv += ["--bind", str(path), str(path)]
        argv += ["--dir", "/empty", "--chdir", "/empty"]
        # The switches of the machine in the first, memory without a bound in the others; what is
        # mounted below them stays as it is.
        argv += ["--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/"]
        return [*argv, "--", *launch.argv]

    def _sized(self, size_bytes: int) -> list[str]:
        return ["--size", str(size_bytes)] if self._sizes else []


async def _options_of(bubblewrap: str) -> frozenset[str]:
    """Return the options that this bubblewrap has; older ones lack some."""
    process = await asyncio.create_subprocess_exec(
        bubblewrap,
        "--help",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    return frozenset(word for word in said.decode(errors="replace").split() if word[:2] == "--")


def _at_most(limit: int, wanted: int) -> int:
    """Return a limit that may be set: a container's own may be lower, and nobody can raise it."""
    _, hard = resource.getrlimit(limit)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


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
