"""Hostile pickles in the real sandbox, with no list of names before it: nothing gets through."""

from __future__ import annotations

import os
import platform
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.sandbox import bubblewrap
from server.sandbox.levels import Level
from tests.support import escaping
from tests.support.escaping import Ground, escapes, explode, laid_out, sandbox_of
from tests.support.needs import lacks
from tests.support.nobody import as_nobody, as_root_that_may_not_mount, only_as_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.sandbox.launch import Sandbox

LEVELS = [Level.NAMESPACES, Level.KERNEL]
MEBIBYTE = 1024**2


@pytest.fixture
def ground() -> Iterator[Ground]:
    with (
        tempfile.TemporaryDirectory(dir=escaping.PLACE) as folder,
        laid_out(Path(folder)) as made,
    ):
        yield made


@pytest.fixture(params=LEVELS, ids=lambda level: f"level-{level.value}")
async def sandbox(ground: Ground, request: pytest.FixtureRequest) -> Sandbox:
    found = await sandbox_of(ground, request.param)
    if found.level is not request.param:
        lacks("; ".join(found.problems))
    return found


async def test_no_attempt_of_a_hostile_pickle_gets_through(
    ground: Ground, sandbox: Sandbox
) -> None:
    met = await escapes(ground, sandbox)

    assert len(met) > 70
    assert [name for name, outcome in met.items() if outcome == "open"] == []
    assert ground.came_through() == []


async def test_the_attempts_are_real_where_nothing_but_limits_holds(ground: Ground) -> None:
    met = await escapes(ground, await sandbox_of(ground, Level.LIMITS))

    assert {
        "read the database",
        "write beside the database",
        "signal another model",
        "connect to the service by TCP",
        "connect to a replica's control socket",
        "turn a given socket to another address",
        "fork",
    } <= {name for name, outcome in met.items() if outcome == "open"}
    assert {"left-behind", "a connection: tcp", "a connection: control"} <= set(
        ground.came_through()
    )


@pytest.mark.parametrize(
    ("bomb", "last_words"),
    [
        ("processes", "PermissionError"),
        ("memory", "MemoryError"),
        ("memory of files", "Function not implemented"),
        ("files", "Too many open files"),
    ],
)
async def test_a_bomb_ends_its_own_process_and_nothing_else(
    ground: Ground, sandbox: Sandbox, bomb: str, last_words: str
) -> None:
    ended = await explode(ground, sandbox, bomb)

    assert ended.code == 1
    assert last_words in ended.log[-1]


async def test_threads_are_bounded_for_each_process(ground: Ground, sandbox: Sandbox) -> None:
    ended = await explode(ground, sandbox, "threads")

    started = ended.told[-1]["threads"]
    # Where the service is not root the kernel counts its own threads too.
    assert 100 < started <= 512 + (0 if os.geteuid() == 0 else sandbox.threads())


async def test_the_disk_is_not_filled(
    ground: Ground, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "TMP_BYTES", 128 * MEBIBYTE)
    monkeypatch.setattr(bubblewrap, "SHARED_MEMORY_BYTES", 64 * MEBIBYTE)

    ended = await explode(ground, sandbox, "disk")

    has_scratch = sandbox.level is Level.NAMESPACES
    assert ended.told[-1]["bytes"] == (192 * MEBIBYTE if has_scratch else 0)
    assert ground.came_through() == []


async def test_an_endless_loop_ends_without_anybody_watching(
    ground: Ground, sandbox: Sandbox
) -> None:
    ended = await explode(ground, sandbox, "processor", cpu_seconds=1)

    assert ended.code in {-signal.SIGXCPU, 128 + signal.SIGXCPU}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there is another interface")
async def test_calls_by_the_interface_of_32_bit_programs_end_the_process(
    ground: Ground, sandbox: Sandbox
) -> None:
    ended = await explode(ground, sandbox, "old interface")

    assert ended.told == []
    assert ended.code in {-signal.SIGSYS, 128 + signal.SIGSYS}


@only_as_root
def test_nothing_gets_through_where_the_service_is_not_root() -> None:
    found = as_nobody()

    for level in ("3", "2"):
        assert_closed(found[level], int(level))
    assert found["1"]["met"]["read the database"] == "open"


@only_as_root
def test_nothing_gets_through_in_a_container_whose_root_may_not_mount() -> None:
    found = as_root_that_may_not_mount()

    # bubblewrap needs that right, Landlock and seccomp do not.
    for asked in ("3", "2"):
        assert_closed(found[asked], 2)


def assert_closed(found: dict[str, Any], level: int) -> None:
    assert found["level"] == level, found["problems"]
    assert [name for name, met in found["met"].items() if met == "open"] == []
    assert found["arrived"] == []
