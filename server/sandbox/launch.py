"""Starts child processes that die with the service, confined as far as this machine allows."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.sandbox.bubblewrap import DEVICES, SCRATCH, SYSTEM_FILES, SYSTEM_FOLDERS, View
from server.sandbox.child import LINE_BYTES, Child, nobody
from server.sandbox.descriptors import refuse_without_descriptors
from server.sandbox.inside.plan import Plan
from server.sandbox.inside.reach import barrier
from server.sandbox.levels import LAYERS, Level, needs_confinement
from server.sandbox.memory import end_over
from server.sandbox.users import ThreadCount, hand_over, take_back

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from server.sandbox.bubblewrap import Bubblewrap
    from server.sandbox.cgroups import Cgroups, Group
    from server.sandbox.users import Users

logger = logging.getLogger(__name__)

REFUSED = "sandbox_too_weak"
"""Code of the refusal to run a kind of model that could do what it likes here."""

# A replica holds up to 512 connections on each of its two sockets.
_FILES = 1280
_THREADS = 512
# What libraries ask for the share of the processors that a container has.
_CONTAINER_FILES = (
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
)
# The parent is compared once the signal is armed: a death before that would go unnoticed.
_STILL_OURS = '[ "$PPID" = "$0" ] && exec "$@"'
# The same where setpriv is not there to ask.
_DIE_WITH_PARENT = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1);os.execvp(sys.argv[2],sys.argv[2:])"
)

_ISOLATED = (
    "import runpy,sys;sys.path.insert(0,sys.argv.pop(1));"
    "runpy.run_module('server.sandbox.inside',run_name='__main__',alter_sys=True)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One program to start and what it may see; paths are the same inside and outside.

    ``target`` is a module below ``tree`` whose function ``main`` takes ``arguments``; ``python``
    is the interpreter of the environment whose packages it needs, None for the service's own
    without any, and ``base`` the one that it was made of, None for the service's own. ``private`` are folders that no other process needs. ``memory_bytes`` bounds the
    address space and ``file_bytes`` each file that is written, ``cpu_seconds`` the processor time;
    zero leaves it unbounded; ``line_bytes`` bounds a line that it says. ``has_gpu`` asks for what CUDA
    needs, ``gpu`` are the GPU's device nodes, ``hear`` takes each line of its log.
    """

    tree: Path
    target: str
    arguments: Sequence[str] = ()
    python: Path | None = None
    base: Path | None = None
    read_only: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    private: Sequence[Path] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: Sequence[int] = ()
    memory_bytes: int = 0
    file_bytes: int = 0
    cpu_seconds: int = 0
    line_bytes: int = LINE_BYTES
    has_gpu: bool = False
    gpu: Sequence[str] = ()
    hear: Callable[[str], None] = nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """How child processes are confined on this machine.

    ``problems`` say why it is no higher level. ``is_lenient`` lets every kind of model run below the
    level at which code is shut in. ``users`` are there if the service is root;
    ``reaches`` tells that paths have to be mounted for them. ``interpreter`` is a copy of the
    service's own that they can read, if it is needed. ``cgroups`` are there where we may make some.
    """

    level: Level
    problems: tuple[str, ...] = ()
    is_lenient: bool = False
    bubblewrap: Bubblewrap | None = None
    users: Users | None = None
    reaches: bool = False
    interpreter: Path | None = None
    cgroups: Cgroups | None = None
    threads: ThreadCount = field(default_factory=ThreadCount)

    @property
    def layers(self) -> tuple[str, ...]:
        """What confines: names of the layers, the outermost first."""
        return LAYERS[self.level] if self.cgroups is None else (*LAYERS[self.level], "cgroups")

    def refusal(self, kind: str) -> dict[str, Any] | None:
        """Return the parameters of the refusal to run models of a kind; None if they may run.

        Those that cannot hold code always may.
        """
        if self.level >= Level.KERNEL or self.is_lenient or not needs_confinement(kind):
            return None
        return {"kind": kind, "sandbox": self.level.value}

    async def start(self, launch: Launch) -> Child:
        """Start a program that dies with the service.

        Raises:
            OSError: it cannot be started.
        """
        refuse_without_descriptors()
        user = 0 if self.users is None else self.users.take()
        group = None
        try:
            if self.cgroups is not None:
                group = await asyncio.to_thread(self.cgroups.open, launch.memory_bytes, _THREADS)
            entered = () if group is None else tuple(group.files)
            argv = await asyncio.to_thread(self._prepare, launch, user, entered)
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(launch),
                cwd="/",
                pass_fds=(*launch.pass_fds, *entered),
                start_new_session=True,
                limit=launch.line_bytes,
            )
        except BaseException:
            await self._release(launch, user, group)
            raise
        finally:
            if group is not None:
                group.close()
        child = Child(process, partial(self._release, launch, user, group), launch.hear)
        if launch.has_gpu and launch.memory_bytes and group is None:
            child.watch(end_over(child, launch.memory_bytes))
        return child

    def _prepare(self, launch: Launch, user: int, entered: tuple[int, ...]) -> list[str]:
        if user:
            hand_over([*launch.private, *launch.writable], user)
        plan = self._plan(launch, user, entered)
        argv = [str(self._python(launch)), *_program(launch)]
        argv += [plan.text(), launch.target, *launch.arguments]
        if self.bubblewrap is None:
            return argv
        view = View(
            argv=argv,
            env=_environment(launch),
            read=self._seen(launch),
            write=launch.writable,
            devices=launch.gpu,
        )
        return self.bubblewrap.command(view)

    async def _release(self, launch: Launch, user: int, group: Group | None) -> None:
        if group is not None:
            # Nobody waits for it: the kernel may need a moment until it is empty.
            removing = asyncio.get_running_loop().run_in_executor(None, group.remove)
            removing.add_done_callback(lambda done: done.exception())
        if user and self.users is not None:
            await asyncio.to_thread(take_back, [*launch.private, *launch.writable])
            self.users.give_back(user)

    def may_use(self, base: Path) -> bool:
        """Tell whether children can read an interpreter that is not the service's own."""
        is_shown = self.users is None or self.bubblewrap is not None or self.reaches
        return is_shown or barrier(_prefix(base) / "lib", -1) is None

    def _python(self, launch: Launch) -> Path:
        if launch.base is not None:
            return launch.base
        if self.interpreter is not None:
            return self.interpreter
        return Path(base_python()) if launch.python is None else launch.python

    def _plan(self, launch: Launch, user: int, entered: tuple[int, ...]) -> Plan:
        contained = self.bubblewrap is not None
        seen = [*map(str, self._seen(launch)), *_existing((*SYSTEM_FOLDERS, *SYSTEM_FILES))]
        if not contained:
            seen += _existing(_CONTAINER_FILES)
        return Plan(
            level=self.level,
            limits=self._limits(launch, user),
            # Inside a namespace of processes the service cannot be seen.
            parent=0 if contained else os.getpid(),
            user=user,
            has_user_namespace=contained and bool(user),
            reach=self.reaches,
            read=tuple(seen),
            write=(*map(str, launch.writable), *(SCRATCH if contained else ())),
            devices=(*DEVICES, *_existing(launch.gpu)),
            groups=entered,
            python="" if launch.python is None else str(launch.python),
            has_gpu=launch.has_gpu,
        )

    def _seen(self, launch: Launch) -> list[Path]:
        base = launch.base or self.interpreter
        prefix = base_prefix() if base is None else _prefix(base)
        return [prefix, launch.tree, *launch.read_only, *launch.private]

    def _limits(self, launch: Launch, user: int) -> dict[str, int]:
        limits = {"CORE": 0, "NOFILE": _FILES}
        if self.level >= Level.KERNEL:
            # The kernel counts by user.
            limits["NPROC"] = _THREADS + (0 if user else self.threads())
        if launch.memory_bytes and not launch.has_gpu:
            limits["AS"] = launch.memory_bytes
        if launch.cpu_seconds:
            limits["CPU"] = launch.cpu_seconds
        if self.level is Level.KERNEL and not launch.writable and not launch.has_gpu:
            # It has no place to write to; CUDA may want files in memory.
            limits["FSIZE"] = 0
        elif launch.file_bytes:
            limits["FSIZE"] = launch.file_bytes
        return {name: _at_most(name, value) for name, value in limits.items()}


def _program(launch: Launch) -> list[str]:
    """Return the options that make an interpreter confine itself and then run the target.

    -S: what a package leaves behind runs as soon as packages are looked for. -P: an uploaded file
    must never shadow a module; an interpreter before 3.11 has only -I for that, which looks into
    the environment's variables neither.
    """
    if launch.base is None:
        return ["-s", "-S", "-P", "-m", "server.sandbox.inside"]
    return ["-I", "-S", "-B", "-u", "-c", _ISOLATED, str(launch.tree)]


def _prefix(base: Path) -> Path:
    return base.parents[1]


def _environment(launch: Launch) -> dict[str, str]:
    return {**launch.env, "PYTHONPATH": str(launch.tree)}


def _existing(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if os.path.exists(path)]  # noqa: PTH110 - names, not files


def _at_most(name: str, wanted: int) -> int:
    """Return a limit that may be set: a container's own may be lower, and nobody can raise it."""
    _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


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
