"""Control groups: memory and threads of one child counted by the kernel, where we may make groups.

They count what no other limit does: files in memory, buffers of pipes and sockets, what CUDA takes
beside its address space.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

PREFIX = "persephone-"
_SERVICE = f"{PREFIX}service"
_PROCESSES = "cgroup.procs"
_REMOVALS, _REMOVAL_SECONDS = 50, 0.02


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A group of ours in which groups are made: which file bounds memory, which threads.

    ``optional`` files are written where they are: swap is not counted everywhere.
    """

    base: Path
    memory: str = ""
    threads: str = ""
    optional: Mapping[str, str] | None = None

    def make(self, group: Path, memory_bytes: int, threads: int) -> None:
        """Make a group with limits; zero leaves memory unbounded."""
        group.mkdir()
        if self.memory and memory_bytes:
            (group / self.memory).write_text(str(memory_bytes))
            for file, value in (self.optional or {}).items():
                if (group / file).exists():
                    (group / file).write_text(value or str(memory_bytes))
        if self.threads:
            (group / self.threads).write_text(str(threads))


@dataclass(frozen=True, slots=True)
class Group:
    """The groups of one child, and the open files by which it enters them."""

    folders: Sequence[Path]
    files: Sequence[int]

    def close(self) -> None:
        """Close the files; whoever inherited them keeps them."""
        for file in self.files:
            os.close(file)

    def remove(self) -> None:
        """Remove the groups of a child that has ended; blocks for a second at most."""
        for folder in self.folders:
            for _ in range(_REMOVALS):
                # The last thread may still be on its way out.
                with contextlib.suppress(OSError):
                    folder.rmdir()
                if not folder.exists():
                    break
                time.sleep(_REMOVAL_SECONDS)


class Cgroups:
    """Makes groups below the service's own."""

    def __init__(self, hierarchies: Sequence[Hierarchy]) -> None:
        self._hierarchies = hierarchies

    def __len__(self) -> int:
        """How many groups a child is in."""
        return len(self._hierarchies)

    def open(self, memory_bytes: int, threads: int) -> Group:
        """Make the groups of one child.

        Raises:
            OSError: they cannot be made.
        """
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        folders: list[Path] = []
        files: list[int] = []
        try:
            for hierarchy in self._hierarchies:
                folders.append(hierarchy.base / name)
                hierarchy.make(folders[-1], memory_bytes, threads)
                files.append(os.open(folders[-1] / _PROCESSES, os.O_WRONLY))
        except OSError:
            group = Group(folders, files)
            group.close()
            group.remove()
            raise
        return Group(folders, files)


def find_cgroups() -> Cgroups | None:
    """Return the groups that we may make; None where they are not ours to make.

    Raises:
        OSError: they should be, and are not.
    """
    own = _own_groups(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    mounts = _mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    unified = _place(own, mounts, "")
    if unified is not None and {"memory", "pids"} <= _controllers(unified):
        if unified.name == _SERVICE:
            # A service before us has put its neighbours there, and us with them.
            unified = unified.parent
        return Cgroups([take_over(unified)]) if _is_delegated(unified) else None
    memory, pids = _place(own, mounts, "memory"), _place(own, mounts, "pids")
    if memory is None or pids is None or not _are_writable(memory, pids):
        return None
    for base in (memory, pids):
        _sweep(base)
    return Cgroups(
        [
            Hierarchy(
                memory,
                memory="memory.limit_in_bytes",
                optional={"memory.memsw.limit_in_bytes": ""},
            ),
            Hierarchy(pids, threads="pids.max"),
        ]
    )


def take_over(base: Path) -> Hierarchy:
    """Make a group of the unified hierarchy one that can have groups.

    Save for the root of all, such a group may hold no process itself.

    Raises:
        OSError: the kernel refuses.
    """
    _sweep(base)
    if not _is_root(base):
        leaf = base / _SERVICE
        leaf.mkdir(exist_ok=True)
        for pid in (base / _PROCESSES).read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError):
                (leaf / _PROCESSES).write_text(pid)
    wanted = {"memory", "pids"} & _controllers(base)
    (base / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(wanted)))
    return Hierarchy(
        base, memory="memory.max", threads="pids.max", optional={"memory.swap.max": "0"}
    )


def _own_groups(text: str) -> dict[str, str]:
    """Return controller -> path; the unified hierarchy is the controller without a name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _mounts(text: str) -> dict[str, tuple[str, Path]]:
    """Return controller -> what is mounted of its hierarchy, and where."""
    found: dict[str, tuple[str, Path]] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup2":
            found[""] = (root, Path(point))
        if kind == "cgroup":
            found.update(dict.fromkeys(options.split(","), (root, Path(point))))
    return found


def _place(
    own: Mapping[str, str], mounts: Mapping[str, tuple[str, Path]], controller: str
) -> Path | None:
    if controller not in own or controller not in mounts:
        return None
    root, point = mounts[controller]
    path = own[controller]
    inside = path[len(root) :] if root != "/" and path.startswith(root) else path
    place = point / inside.lstrip("/")
    return place if place.is_dir() else None


def _controllers(base: Path) -> set[str]:
    return set((base / "cgroup.controllers").read_text(encoding="ascii").split())


def _is_root(base: Path) -> bool:
    """Whether a group is the root of all; that of a container is only the root of what it sees."""
    return not (base / "cgroup.type").exists()


def _is_delegated(base: Path) -> bool:
    """Whether somebody meant us to make groups here: systemd does not like it otherwise."""
    if not _are_writable(base):
        return False
    with contextlib.suppress(OSError):
        if os.getxattr(base, "user.delegate") == b"1":
            return True
    # A container's own, or a user's; where there is systemd, the root of all is its.
    is_outermost = not (base.parent / _PROCESSES).exists()
    is_ours = os.geteuid() != 0 and base.stat().st_uid == os.geteuid()
    return is_ours or (is_outermost and not Path("/run/systemd/system").exists())


def _are_writable(*bases: Path) -> bool:
    return all(os.access(base / _PROCESSES, os.W_OK) and os.access(base, os.W_OK) for base in bases)


def _sweep(base: Path) -> None:
    """Remove what a killed service left behind; that of a running one may be about to be used."""
    for folder in base.glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
