"""Environments that nobody uses are collected, and no other, whatever else happens."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.environments import build as build_module
from server.environments.build import Environments, folder_name
from server.environments.lock import lock_of
from server.environments.package_cache import Kept, measured, stored_bytes
from server.pipeline.housekeeping import COLLECT_SECONDS, PRESSED_SECONDS, Collector, Housekeeping
from server.pipeline.quotas import Disk
from server.settings import Settings
from tests.support.tiny_wheels import empty_index, wheel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[3]
DAY = 86_400.0


def quiet(_code: str, _params: dict[str, Any]) -> None:
    pass


def nobody() -> set[str]:
    return set()


class World:
    """Environments of tiny wheels."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "environments"
        for version in ("1.0", "2.0"):
            files = {"tiny/data.txt": version * 10_000}
            wheel(folder / "wheels", "tiny", version, files=files)
        wheel(folder / "wheels", "other", "1.0", files={"other/data.txt": "x" * 50_000})
        self.settings = Settings(
            wheel_links=(str(folder / "wheels"),), wheel_index=empty_index(folder / "index")
        )
        self.environments = Environments(self.settings, self.root)

    async def build(self, text: str = "tiny==1.0", *, idle_seconds: float = 0.0) -> str:
        """Build an environment, last used so long ago, and return its name."""
        environment = await self.environments.build(lock_of(text, "cpu"), quiet)
        self.age(environment.root.name, idle_seconds)
        return environment.root.name

    def age(self, name: str, idle_seconds: float) -> None:
        at = time.time() - idle_seconds
        os.utime(self.root / name, (at, at))

    @property
    def built(self) -> set[str]:
        return {path.name for path in self.root.iterdir() if path.name[0] != "."}

    @property
    def leftovers(self) -> list[Path]:
        return list((self.root / ".tmp").iterdir())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.environments.close()


async def test_what_was_not_used_for_long_is_removed_and_can_be_built_again(world: World) -> None:
    old = await world.build(idle_seconds=8 * DAY)
    young = await world.build("tiny==2.0", idle_seconds=6 * DAY)
    assert await world.environments.collect(nobody, 7 * DAY) == 1
    assert world.built == {young}
    assert world.leftovers == []
    assert await world.build() == old


async def test_whatever_is_in_use_stays_and_counts_as_used(world: World) -> None:
    used = await world.build(idle_seconds=100 * DAY)
    assert await world.environments.collect(lambda: {used}, 0.0) == 0
    assert await world.environments.collect(nobody, DAY) == 0
    world.age(used, 2 * DAY)
    assert await world.environments.collect(nobody, DAY) == 1


async def test_using_one_is_noted(world: World) -> None:
    name = await world.build(idle_seconds=100 * DAY)
    assert await world.build("tiny==1.0") == name
    assert await world.environments.collect(nobody, 0.0) == 0


async def test_what_a_preparation_holds_is_not_taken_from_it(world: World) -> None:
    name = await world.build()
    async with world.environments.using(lock_of("tiny==1.0", "cpu"), quiet) as environment:
        world.age(name, 100 * DAY)
        assert await world.environments.collect(nobody, 0.0) == 0
        assert environment.python.exists()
    assert await world.environments.collect(nobody, 0.0) == 1


async def test_who_comes_in_the_middle_finds_it_whole_or_builds_it_again(world: World) -> None:
    for delay in range(12):
        name = await world.build(idle_seconds=100 * DAY)

        async def prepare(turns: int = delay) -> bool:
            for _ in range(turns):
                await asyncio.sleep(0)
            async with world.environments.using(lock_of("tiny==1.0", "cpu"), quiet) as made:
                await asyncio.sleep(0.01)
                return made.python.exists() and (made.site / "tiny" / "data.txt").exists()

        preparing = asyncio.create_task(prepare())
        await world.environments.collect(nobody, 0.0)
        assert await preparing
        assert world.built == {name}


async def test_what_becomes_used_after_the_first_look_stays(world: World) -> None:
    name = await world.build(idle_seconds=100 * DAY)
    looks = 0

    def in_use() -> set[str]:
        nonlocal looks
        looks += 1
        return {name} if looks > 1 else set()

    assert await world.environments.collect(in_use, 0.0) == 0
    assert looks > 1
    assert world.built == {name}


async def test_what_another_process_is_building_is_left_to_it(world: World) -> None:
    name = await world.build(idle_seconds=100 * DAY)
    with (world.root / ".guards" / name).open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        assert await world.environments.collect(nobody, 0.0) == 0
    assert await world.environments.collect(nobody, 0.0) == 1


async def test_a_service_killed_in_the_middle_of_it_leaves_nothing_half(
    world: World, tmp_path: Path
) -> None:
    name = await world.build(idle_seconds=100 * DAY)
    program = textwrap.dedent("""
        import asyncio, sys, time
        from pathlib import Path
        from server.environments import build
        from server.settings import Settings

        def killed(path):
            (next(path.rglob("data.txt"))).unlink()
            print("half", flush=True)
            time.sleep(60)

        build.remove = killed
        environments = build.Environments(Settings(), Path(sys.argv[1]))
        asyncio.run(environments.collect(set, 0.0))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program, world.root],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == b"half\n"
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.wait)
    process.stdout.close()
    assert len(world.leftovers) == 1

    again = Environments(world.settings, world.root)
    await again.open()
    assert world.leftovers == []
    assert name not in world.built
    environment = await again.build(lock_of("tiny==1.0", "cpu"), quiet)
    assert (environment.site / "tiny" / "data.txt").exists()


async def test_packages_beyond_a_limit_go_unless_an_environment_shares_them(
    world: World,
) -> None:
    cache = world.root / ".uv"
    await world.build("other==1.0")
    gone = await world.build(idle_seconds=100 * DAY)
    packages = world.environments.packages
    await packages.bound(0)
    assert (await packages.measure()).unshared == {}
    assert list(cache.glob("archive-v*/*/tiny"))

    await world.environments.collect(nobody, 0.0)
    assert set((await packages.measure()).unshared) == {"tiny"}
    before = await world.environments.stored_bytes()
    await packages.bound(10**9)
    assert list(cache.glob("archive-v*/*/tiny"))
    await packages.bound(0)
    assert not list(cache.glob("archive-v*/*/tiny"))
    assert list(cache.glob("archive-v*/*/other"))
    assert await world.environments.stored_bytes() < before
    assert await world.build() == gone


def test_the_largest_packages_go_first_and_no_more_than_needed() -> None:
    kept = Kept({"a": 10, "b": 30, "c": 20})
    assert kept.surplus(60) == []
    assert kept.surplus(59) == ["b"]
    assert kept.surplus(25) == ["b", "c"]
    assert kept.surplus(0) == ["b", "c", "a"]


def test_a_cache_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert measured(tmp_path / "none") == Kept()


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert stored_bytes(tmp_path) == 100


# ── when it is done


class RecordingEnvironments:
    """Takes note of what is to be collected."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.limits: list[int] = []
        self.is_building = False
        self.packages = self

    async def collect(self, _in_use: Any, kept_seconds: float) -> int:
        self.calls.append(kept_seconds)
        return 0

    async def bound(self, limit: int) -> None:
        self.limits.append(limit)

    async def stored_bytes(self) -> int:
        return 42


class FixedDisk:
    """A disk with so much free."""

    def __init__(self, free: int) -> None:
        self.free = free

    async def disk(self) -> Disk:
        return Disk(total_bytes=1000, free_bytes=self.free)


async def test_it_is_done_every_hour_and_at_once_where_there_is_no_room() -> None:
    environments, disk, at, sizes = RecordingEnvironments(), FixedDisk(900), [0.0], []
    settings = Settings(keep_environments_seconds=5.0, package_cache_bytes=7)
    collector = Collector(
        settings,
        disk,  # type: ignore[arg-type]
        environments,  # type: ignore[arg-type]
        nobody,
        sizes.append,
        clock=lambda: at[0],
    )
    await collector.attend()
    assert environments.calls == []
    at[0] = PRESSED_SECONDS
    await collector.attend()
    at[0] += COLLECT_SECONDS - 1
    await collector.attend()
    assert environments.calls == [5.0]
    disk.free = 100
    await collector.attend()
    assert (environments.calls, environments.limits) == ([5.0, 0.0], [7, 0])
    await collector.attend()
    assert len(environments.calls) == 2
    at[0] += PRESSED_SECONDS
    environments.is_building = True
    await collector.attend()
    assert (environments.calls, environments.limits) == ([5.0, 0.0, 0.0], [7, 0])
    assert sizes == [42, 42]


async def test_a_duty_that_fails_keeps_no_other_from_its_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []

    async def fail() -> None:
        raise OSError(28, "no space")

    async def work() -> None:
        done.append("worked")

    house = Housekeeping({"failing": fail, "working": work})
    house.open()
    async with asyncio.timeout(10):
        while not done:
            await asyncio.sleep(0.001)
    await house.close()
    assert done == ["worked"]
    assert "failing failed" in caplog.text


def test_a_folder_is_named_after_its_lock() -> None:
    lock = lock_of("tiny==1.0", "cpu")
    assert lock.digest.startswith(folder_name(lock.digest))
    assert folder_name("") == ""
    assert build_module.MODEL_SERVER_REQUIREMENTS.is_file()


async def test_what_a_failing_disk_kept_is_collected_but_not_what_is_being_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = await world.build(idle_seconds=100 * DAY)
    with monkeypatch.context() as patch:
        patch.setattr("server.environments.folders.shutil.rmtree", lambda *_args, **_more: None)
        assert await world.environments.collect(nobody, DAY) == 1
    [kept] = world.leftovers
    assert kept.name.startswith(doomed)
    world.age(f".tmp/{kept.name}", DAY)
    (world.root / ".tmp" / "scratch").mkdir()
    (world.root / "half").mkdir()

    assert await world.environments.collect(nobody, DAY) == 0
    assert [path.name for path in world.leftovers] == ["scratch"]
    assert world.built == set()
