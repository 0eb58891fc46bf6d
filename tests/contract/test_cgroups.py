"""Control groups of the real kernel, where this machine lets us make some."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.sandbox import cgroups
from server.sandbox.cgroups import Cgroups, Hierarchy, find_cgroups, take_over
from server.sandbox.levels import Level
from server.sandbox.memory import resident_bytes
from tests.support.confined import script
from tests.support.escaping import Ground, explode, laid_out, sandbox_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MEBIBYTE = 1024**2
TAKES = "hoard = bytearray(64 << 20)\nprint(len(hoard), flush=True)\nimport time\ntime.sleep(60)"


@pytest.fixture
def own() -> Cgroups:
    found = find_cgroups()
    if found is None:
        pytest.skip("this user may make no cgroups on this machine")
    return found


@pytest.fixture
def ground() -> Iterator[Ground]:
    # A short path: sockets lie in it.
    with tempfile.TemporaryDirectory() as folder, laid_out(Path(folder) / "ground") as made:
        yield made


def folders_of(made: Cgroups) -> list[Path]:
    return [
        folder
        for hierarchy in made._hierarchies
        for folder in hierarchy.base.glob(f"{cgroups.PREFIX}{os.getpid()}-*")
    ]


@pytest.mark.parametrize("level", [Level.NAMESPACES, Level.KERNEL])
async def test_what_no_other_limit_counts_ends_where_there_are_groups(
    own: Cgroups, ground: Ground, level: Level
) -> None:
    sandbox = await sandbox_of(ground, level)
    if sandbox.cgroups is None or sandbox.level is not level:
        pytest.skip("; ".join(sandbox.problems) or "no cgroups in the sandbox")

    # With what a GPU needs a process has no bound on its addresses, and may keep files in memory.
    limits = {"has_gpu": True, "memory_bytes": 128 * MEBIBYTE}
    for bomb in ("memory", "memory of files"):
        ended = await explode(ground, sandbox, bomb, **limits)
        assert ended.code in {-signal.SIGKILL, 128 + signal.SIGKILL}

    assert ground.came_through() == []


def test_groups_are_removed_with_their_child(own: Cgroups) -> None:
    group = own.open(64 * MEBIBYTE, 50)
    assert len(folders_of(own)) == len(group.files) == len(own)

    child = subprocess.Popen(
        [sys.executable, "-c", "import os,sys; [os.write(int(f), b'0') for f in sys.argv[1:]]"]
        + [str(file) for file in group.files],
        pass_fds=group.files,
    )
    group.close()
    assert child.wait() == 0
    group.remove()

    assert folders_of(own) == []


def test_a_group_that_cannot_be_made_leaves_nothing(own: Cgroups) -> None:
    broken = Hierarchy(own._hierarchies[0].base, memory="no.such.limit")

    with pytest.raises(OSError, match="such"):
        Cgroups([broken]).open(MEBIBYTE, 10)

    assert folders_of(own) == []


@pytest.fixture
def unified() -> Iterator[Path]:
    """A group of the unified hierarchy for this test alone, whatever controllers it has."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    place = cgroups._place({"": "/"}, cgroups._mounts(mounts), "")
    base = Path("/nowhere") if place is None else place / f"test-{os.getpid()}"
    try:
        base.mkdir()
    except OSError:
        pytest.skip("no unified hierarchy to make groups in")
    yield base
    for folder in (*base.iterdir(), base):
        if folder.is_dir():
            folder.rmdir()


def test_processes_of_a_group_that_is_taken_over_move_into_a_leaf(unified: Path) -> None:
    waiting = subprocess.Popen(["sleep", "60"])
    (unified / "cgroup.procs").write_text(str(waiting.pid))

    hierarchy = take_over(unified)

    leaf = unified / "persephone-service" / "cgroup.procs"
    assert leaf.read_text().split() == [str(waiting.pid)]
    group = hierarchy.base / "child"
    group.mkdir()
    (group / "cgroup.procs").write_text(str(waiting.pid))
    assert leaf.read_text() == ""
    waiting.kill()
    waiting.wait()


def test_groups_of_a_service_that_is_gone_are_swept_and_those_of_others_stay(
    unified: Path,
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = [f"persephone-{gone.pid}-1", f"persephone-{os.getpid()}-1", "somebody-else"]
    for name in names:
        (unified / name).mkdir()

    cgroups._sweep(unified)

    assert [(unified / name).exists() for name in names] == [False, True, True]


def test_the_own_group_is_found_below_what_is_mounted() -> None:
    mounts = cgroups._mounts(
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "36 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    groups = cgroups._own_groups("4:memory:/docker/ab/inner\n0::/system.slice\n")

    assert groups == {"memory": "/docker/ab/inner", "": "/system.slice"}
    assert mounts["memory"] == ("/docker/ab", Path("/sys/fs/cgroup/memory"))
    assert mounts[""] == ("/", Path("/sys/fs/cgroup/unified"))
    assert cgroups._place(groups, {"memory": ("/docker/ab", Path("/tmp"))}, "pids") is None


async def test_a_gpu_process_without_groups_is_ended_by_the_memory_it_holds(
    ground: Ground, tmp_path: Path
) -> None:
    sandbox = replace(await sandbox_of(ground, Level.NAMESPACES), cgroups=None)

    child = await sandbox.start(script(tmp_path, TAKES, has_gpu=True, memory_bytes=48 * MEBIBYTE))
    code = await child.wait()

    assert code in {-signal.SIGKILL, 128 + signal.SIGKILL}
    assert resident_bytes(child.pid) == 0
