"""The GPUs through the real library binding and a real child, on a compiled stand-in driver."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpu.devices import Card as GpuCard
from gpu.devices import DeviceState, Problem, Snapshot
from gpu.inventory import Inventory, Timing
from gpu.link import Link, child_command, child_environment
from gpu.placement import free_devices
from tests.support.fake_nvml.world import Card, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MIB = 1024**2
# Nothing is cached, so that every snapshot shows the world as it is.
TIMING = Timing(cache=0.0, unusable=0.0, absent=0.0, backoff=0.01, answer=30.0, hang=60.0)
A100 = Card(uuid="GPU-a100", used=450)
T4 = Card(uuid="GPU-t4", name="Tesla T4", total=15_360, used=300)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.create(tmp_path / "driver", A100, T4)


@asynccontextmanager
async def opened(
    environment: dict[str, str], timing: Timing = TIMING
) -> AsyncIterator[tuple[Inventory, Link]]:
    link = Link(environ={**os.environ, **environment})
    inventory = Inventory(timing=timing, link=link)
    await inventory.open()
    try:
        yield inventory, link
    finally:
        await inventory.close()


async def seen(inventory: Inventory, wanted: Callable[[Snapshot], bool]) -> Snapshot:
    async with asyncio.timeout(30):
        while not wanted(snapshot := await inventory.snapshot()):
            await asyncio.sleep(0.01)
    return snapshot


async def test_two_cards_are_listed_by_uuid_with_all_their_figures(world: World) -> None:
    world.change("GPU-t4", utilization=37, pids=(4_294_967_295, 41))
    async with opened(world.environment) as (inventory, _):
        snapshot = await inventory.snapshot()

    a100, t4 = snapshot.devices
    assert (a100.id, a100.name) == ("GPU-a100", "NVIDIA A100-SXM4-80GB")
    assert a100.memory_total_bytes == 81_920 * MIB
    assert a100.memory_used_bytes == 450 * MIB
    assert a100.memory_free_bytes == (81_920 - 450) * MIB
    assert (t4.id, t4.utilization, t4.processes) == ("GPU-t4", 37, (41,))
    assert (a100.minor, t4.minor) == (1, 0)
    assert (snapshot.problem, snapshot.driver) == (None, "550.54.15")
    assert [device.id for device in free_devices(snapshot, {})] == ["GPU-a100"]


async def test_two_cards_are_measured_with_all_their_figures(world: World) -> None:
    busy = {"utilization": 71, "memory_utilization": 12, "milliwatts": 251_500, "celsius": 64}
    world.change("GPU-t4", **busy)
    async with opened(world.environment) as (inventory, _):
        a100, t4 = (await inventory.snapshot()).cards

        expected = GpuCard(
            id="GPU-t4",
            index=1,
            name="Tesla T4",
            utilization=71,
            memory_utilization=12,
            power_milliwatts=251_500,
            temperature=64,
            xid=0,
        )
        assert t4 == expected
        assert (a100.index, a100.utilization, a100.power_milliwatts) == (0, 0, 52_000)

        world.fail("nvmlDeviceGetTemperatureV", 13)
        world.change("GPU-t4", milliwatts=-1)
        t4 = (await inventory.snapshot()).cards[1]
        assert (t4.temperature, t4.power_milliwatts) == (64, None)


async def test_the_newest_error_of_a_card_is_known_also_once_it_is_lost(world: World) -> None:
    world.report_xid("GPU-a100", 13)
    async with opened(world.environment) as (inventory, _):
        # What was before is not told.
        assert [card.xid for card in (await inventory.snapshot()).cards] == [0, 0]

        world.report_xid("GPU-a100", 31)
        world.report_xid("GPU-t4", 63)
        assert [card.xid for card in (await inventory.snapshot()).cards] == [31, 63]

        world.report_xid("GPU-a100", 79)
        world.lose("GPU-a100")
        a100 = (await inventory.snapshot()).cards[0]
        assert a100 == GpuCard(id="GPU-a100", index=0, name="NVIDIA A100-SXM4-80GB", xid=79)


async def test_a_driver_that_tells_no_errors_is_measured_all_the_same(world: World) -> None:
    world.fail("nvmlDeviceRegisterEvents", 3)
    async with opened(world.environment) as (inventory, _):
        cards = (await inventory.snapshot()).cards

    assert [(card.xid, card.temperature) for card in cards] == [(None, 34), (None, 34)]


async def test_a_world_that_changes_is_seen_without_a_restart(world: World) -> None:
    async with opened(world.environment) as (inventory, link):
        pid = link.pid
        world.run_on("GPU-a100", 4711, used=20_000)
        snapshot = await inventory.snapshot()
        assert snapshot.devices[0].processes == (4711,)
        assert [device.id for device in free_devices(snapshot, {})] == ["GPU-t4"]

        world.run_on("GPU-a100", used=450)
        snapshot = await inventory.snapshot()
        assert [device.id for device in free_devices(snapshot, {})] == ["GPU-a100", "GPU-t4"]
        assert link.pid == pid


async def test_with_the_cache_on_the_driver_is_asked_once(world: World) -> None:
    async with opened(world.environment, Timing(cache=600.0, answer=30.0)) as (inventory, _):
        await asyncio.gather(*(inventory.snapshot() for _ in range(50)))

    assert world.calls("nvmlDeviceGetCount_v2") == 1


async def test_instances_are_listed_by_their_own_uuid_instead_of_their_parent(
    world: World,
) -> None:
    instances = (
        Card(uuid="MIG-1", name="A100 MIG 1g.10gb", total=9_856, used=13, pids=(9,)),
        Card(uuid="-"),
        Card(uuid="MIG-2", name="A100 MIG 1g.10gb", total=9_856, used=13),
    )
    world.show(Card(uuid="GPU-a100", instances=instances), T4)
    async with opened(world.environment) as (inventory, _):
        snapshot = await inventory.snapshot()

    numbers = [(each.minor, each.gpu_instance, each.compute_instance) for each in snapshot.devices]
    assert numbers == [(1, 1, 0), (1, 3, 0), (0, None, None)]
    listed = [(device.id, device.parent, device.utilization) for device in snapshot.devices]
    assert listed == [
        ("MIG-1", "GPU-a100", None),
        ("MIG-2", "GPU-a100", None),
        ("GPU-t4", None, 0),
    ]
    assert [device.gpu_instance for device in snapshot.devices] == [1, 3, None]
    assert [card.id for card in snapshot.cards] == ["GPU-a100", "GPU-t4"]
    assert [device.id for device in free_devices(snapshot, {})] == ["GPU-t4", "MIG-2"]


async def test_a_card_in_instance_mode_without_instances_is_not_offered(world: World) -> None:
    world.show(Card(uuid="GPU-a100", mig=True), T4)
    async with opened(world.environment) as (inventory, _):
        snapshot = await inventory.snapshot()

    assert [device.id for device in snapshot.devices] == ["GPU-t4"]


async def test_a_lost_card_is_not_offered_until_it_was_seen_healthy_again(world: World) -> None:
    async with opened(world.environment) as (inventory, _):
        world.lose("GPU-a100")
        snapshot = await inventory.snapshot()
        assert snapshot.problem is Problem.GPU_LOST
        lost = snapshot.device("GPU-a100")
        assert lost is not None
        assert lost.state is DeviceState.LOST
        assert [device.id for device in free_devices(snapshot, {})] == ["GPU-t4"]

        world.change("GPU-a100", error=0)
        snapshot = await inventory.snapshot()
        assert [device.id for device in free_devices(snapshot, {})] == ["GPU-t4"]
        await seen(inventory, lambda snapshot: len(free_devices(snapshot, {})) == 2)


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlSystemGetDriverVersion",
    ],
)
async def test_an_old_driver_that_lacks_a_call_still_lists_every_card(
    world: World, function: str
) -> None:
    world.fail(function, 13)
    async with opened(world.environment) as (inventory, _):
        snapshot = await inventory.snapshot()

    assert [device.id for device in free_devices(snapshot, {})] == ["GPU-a100", "GPU-t4"]
    assert [device.memory_used_bytes for device in snapshot.devices] == [450 * MIB, 300 * MIB]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (9, Problem.NO_DRIVER),
        (4, Problem.NO_PERMISSION),
        (18, Problem.DRIVER_MISMATCH),
        (999, Problem.DRIVER_UNREACHABLE),
    ],
)
async def test_a_driver_that_does_not_start_offers_nothing_until_it_does(
    world: World, code: int, problem: Problem
) -> None:
    world.break_init(code)
    async with opened(world.environment) as (inventory, _):
        snapshot = await inventory.snapshot()
        assert (snapshot.devices, snapshot.problem) == ((), problem)

        world.break_init(0)
        assert len((await inventory.snapshot()).devices) == 2


async def test_a_machine_without_the_library_says_so(tmp_path: Path) -> None:
    # A file that is no library hides a real one further on.
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    timing = Timing(answer=30.0)
    async with opened({"LD_LIBRARY_PATH": str(tmp_path)}, timing) as (inventory, link):
        snapshot = await inventory.snapshot()

        assert (snapshot.devices, snapshot.problem) == ((), Problem.NO_LIBRARY)
        assert link.pid is None


async def test_a_hanging_driver_leaves_the_last_good_list_and_comes_back(world: World) -> None:
    timing = Timing(cache=0.0, backoff=0.01, backoff_limit=0.01, answer=0.2, hang=0.4)
    async with opened(world.environment, timing) as (inventory, link):
        await seen(inventory, lambda snapshot: len(snapshot.devices) == 2)
        stuck = link.pid
        world.hang("nvmlDeviceGetMemoryInfo_v2")
        snapshot = await seen(inventory, lambda snapshot: snapshot.problem is not None)
        assert snapshot.problem is Problem.DRIVER_HANGS
        assert [device.id for device in snapshot.devices] == ["GPU-a100", "GPU-t4"]

        world.hang()
        world.change("GPU-t4", used=900)
        snapshot = await seen(inventory, lambda snapshot: snapshot.problem is None)
        assert snapshot.devices[1].memory_used_bytes == 900 * MIB
        assert link.pid != stuck


async def test_a_killed_reader_is_replaced(world: World) -> None:
    async with opened(world.environment) as (inventory, link):
        assert link.pid is not None
        os.kill(link.pid, signal.SIGKILL)
        snapshot = await seen(inventory, lambda snapshot: snapshot.problem is not None)
        assert snapshot.problem is Problem.DRIVER_FAILED
        assert len(snapshot.devices) == 2

        await seen(inventory, lambda snapshot: snapshot.problem is None)


async def test_closing_ends_the_reader_even_inside_a_hanging_driver(world: World) -> None:
    timing = Timing(cache=0.0, answer=0.2, hang=60.0)
    async with opened(world.environment, timing) as (inventory, link):
        await seen(inventory, lambda snapshot: len(snapshot.devices) == 2)
        pid = link.pid
        world.hang("nvmlDeviceGetCount_v2")
        await seen(inventory, lambda snapshot: snapshot.problem is Problem.DRIVER_HANGS)

    assert not Path(f"/proc/{pid}").exists()


def test_the_reader_ends_when_its_stdin_closes(world: World) -> None:
    environment = child_environment({**os.environ, **world.environment})
    answer = subprocess.run(
        child_command(),
        input=b"read\nread\n",
        stdout=subprocess.PIPE,
        env=environment,
        timeout=60,
        check=True,
    )

    assert answer.stdout.count(b"\n") == 2


PARENT = """
import subprocess, sys
from gpu.link import child_command
child = subprocess.Popen(child_command(), stdin=subprocess.PIPE)
child.stdin.write(b"read\\n")
child.stdin.flush()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_reader_that_hangs_in_the_driver_dies_with_the_service(world: World) -> None:
    world.hang("nvmlInitWithFlags")
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment({**os.environ, **world.environment}),
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        while world.calls("nvmlInitWithFlags") == 0:
            pass_time()
        parent.kill()
    while is_running(pid):
        pass_time()


def pass_time() -> None:
    """Let other processes run; the test's own deadline ends a wait that never does."""
    subprocess.run(["sleep", "0.02"], check=True)


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
