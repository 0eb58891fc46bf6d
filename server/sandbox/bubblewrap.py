"""The command line of bubblewrap: which namespaces, and what of the disk is in them."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TMP_BYTES = 1024**3
SHARED_MEMORY_BYTES = 256 * 1024**2
SCRATCH = ("/tmp", "/dev/shm")  # noqa: S108 - inside, each a tmpfs of the process's own

SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_NEEDED = ("--size", "--perms", "--unshare-user", "--die-with-parent")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one process sees of the machine; ``argv`` is what it is started with."""

    argv: Sequence[str]
    env: Mapping[str, str]
    read: Sequence[Path]
    write: Sequence[Path]
    devices: Sequence[str]


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """The bubblewrap of this machine.

    With ``changes_user`` it is root that starts it, and the process inside becomes another user
    and makes its user namespace itself, as that user.
    """

    program: str
    options: frozenset[str]
    changes_user: bool

    def problem(self) -> str:
        """Return what an older one lacks; empty if nothing."""
        missing = [option for option in _NEEDED if option not in self.options]
        return f"this bubblewrap has no {', '.join(missing)}" if missing else ""

    def command(self, view: View) -> list[str]:
        """Return the command that shows a process no more than ``view``."""
        argv = [self.program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        argv += ["--unshare-cgroup-try", *self._user(), "--die-with-parent", "--new-session"]
        argv += ["--clearenv"]
        for name, value in view.env.items():
            argv += ["--setenv", name, value]
        argv += [*_system(), "--proc", "/proc", "--dev", "/dev"]
        for folder, size in zip(SCRATCH, (TMP_BYTES, SHARED_MEMORY_BYTES), strict=True):
            argv += ["--perms", "1777", "--size", str(size), "--tmpfs", folder]
        argv += _files(view)
        # Memory without a bound in these; what is mounted below them stays as it is.
        argv += [
            "--dir",
            "/empty",
            "--chdir",
            "/empty",
            "--remount-ro",
            "/dev",
            "--remount-ro",
            "/",
        ]
        return [*argv, "--", *view.argv]

    def _user(self) -> list[str]:
        if self.changes_user:
            # To become another user is all it may, and what it may no longer once it has.
            rights = ("CAP_SETUID", "CAP_SETGID")
            return ["--cap-drop", "ALL", *(word for name in rights for word in ("--cap-add", name))]
        closed = ("--disable-userns",) if "--disable-userns" in self.options else ()
        return ["--unshare-user", *closed, "--cap-drop", "ALL"]


def _system() -> list[str]:
    argv = []
    for folder in SYSTEM_FOLDERS:
        path = Path(folder)
        if path.is_symlink():
            argv += ["--symlink", str(path.readlink()), folder]
        elif path.exists():
            argv += ["--ro-bind", folder, folder]
    return argv


def _files(view: View) -> list[str]:
    argv = []
    for folder in _above([*map(Path, (*SYSTEM_FILES, *view.devices)), *view.read, *view.write]):
        # Else made for nobody but who starts bubblewrap.
        argv += ["--perms", "0755", "--dir", folder]
    for name in SYSTEM_FILES:
        argv += ["--ro-bind-try", name, name]
    for node in view.devices:
        argv += ["--dev-bind-try", node, node]
    for path in view.read:
        argv += ["--ro-bind", str(path), str(path)]
    for path in view.write:
        argv += ["--bind", str(path), str(path)]
    return argv


def _above(paths: Sequence[Path]) -> list[str]:
    """Return the folders above some paths, each before those below it."""
    folders = {folder for path in paths for folder in path.parents if folder.name}
    return sorted(map(str, folders))


async def find_bubblewrap(*, changes_user: bool) -> Bubblewrap | None:
    """Return the bubblewrap that is on the path; None if there is none."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    process = await asyncio.create_subprocess_exec(
        program,
        "--help",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    words = said.decode(errors="replace").split()
    options = frozenset(word for word in words if word.startswith("--"))
    return Bubblewrap(program, options, changes_user)
