"""The cache in front of the driver: never slow, never failing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from gpu.devices import Device, DeviceState, Problem, Reading
from gpu.inventory import Inventory, Recovery, Timing
from gpu.link import Link, LinkError
from gpu.telemetry import FRESH_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CARD = Device(id="GPU-1", name="T4", memory_total_bytes=9, memory_used_bytes=1, memory_free_bytes=8)
GOOD = Reading(devices=(CARD,), driver="550")
TIMING = Timing(answer=0.02, hang=0.05)


class AnswersAtOnce(Link):
    def __init__(self) -> None:
        super().__init__(command=["false"])
        self.reading = GOOD
        self.reads = 0
        self.abandoned = 0

    async def read(self) -> Reading:
        self.reads += 1
        await asyncio.sleep(0)
        return self.reading

    def abandon(self) -> None:
        self.abandoned += 1


class Hangs(AnswersAtOnce):
    def __init__(self) -> None:
        super().__init__()
        self.hanging = True

    async def read(self) -> Reading:
        if self.hanging:
            self.reads += 1
            await asyncio.Event().wait()
        return await super().read()


class Dies(AnswersAtOnce):
    async def read(self) -> Reading:
        self.reads += 1
        raise LinkError("gone")


class CannotStart(AnswersAtOnce):
    async def read(self) -> Reading:
        self.reads += 1
        raise OSError("no more processes")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(
    link: AnswersAtOnce, clock: Clock, timing: Timing = TIMING
) -> AsyncIterator[Inventory]:
    inventory = Inventory(clock=clock, timing=timing, link=link)
    await inventory.open()
    try:
        yield inventory
    finally:
        await inventory.close()


async def test_the_first_snapshot_is_there_when_it_has_opened() -> None:
    link = AnswersAtOnce()
    async with opened(link, Clock()) as inventory:
        snapshot = await inventory.snapshot()

    assert snapshot.devices == (CARD,)
    assert (snapshot.problem, snapshot.driver, snapshot.taken_at) == (None, "550", 100.0)
    assert link.reads == 1


async def test_within_a_second_the_driver_is_asked_once() -> None:
    link, clock = AnswersAtOnce(), Clock()
    async with opened(link, clock) as inventory:
        clock.now += 0.9
        assert (await inventory.snapshot()).age_seconds == pytest.approx(0.9)
        assert link.reads == 1
        clock.now += 0.1
        assert (await inventory.snapshot()).age_seconds == 0

    assert link.reads == 2


async def test_many_callers_at_once_share_one_reading() -> None:
    link, clock = AnswersAtOnce(), Clock()
    async with opened(link, clock) as inventory:
        clock.now += 5
        snapshots = await asyncio.gather(*(inventory.snapshot() for _ in range(20)))

    assert {snapshot.devices for snapshot in snapshots} == {(CARD,)}
    assert link.reads == 2


async def test_a_caller_that_gives_up_does_not_end_the_reading_of_the_others() -> None:
    link, clock = AnswersAtOnce(), Clock()
    async with opened(link, clock) as inventory:
        clock.now += 5
        link.reading = Reading(driver="560")
        impatient = asyncio.create_task(inventory.snapshot())
        patient = asyncio.create_task(inventory.snapshot())
        await asyncio.sleep(0)
        impatient.cancel()

        assert (await patient).driver == "560"


async def test_a_hanging_driver_is_given_up_and_the_last_good_snapshot_served() -> None:
    link, clock = Hangs(), Clock()
    link.hanging = False
    async with opened(link, clock) as inventory:
        link.hanging = True
        clock.now += 2
        snapshot = await inventory.snapshot()
        assert (snapshot.devices, snapshot.problem) == ((CARD,), Problem.DRIVER_HANGS)
        assert snapshot.age_seconds == 2
        while link.abandoned == 0:
            await asyncio.sleep(0.01)
        reads = link.reads

        # Within the backoff nobody asks again.
        snapshot = await inventory.snapshot()
        assert (snapshot.devices, snapshot.problem) == ((CARD,), Problem.DRIVER_HANGS)
        assert link.reads == reads

        link.hanging = False
        clock.now += TIMING.backoff
        assert (await inventory.snapshot()).problem is None


async def test_later_callers_of_a_hanging_reading_do_not_wait() -> None:
    link, clock = Hangs(), Clock()
    link.hanging = False
    async with opened(link, clock) as inventory:
        link.hanging = True
        clock.now += 2
        first = asyncio.create_task(inventory.snapshot())
        await asyncio.sleep(0)
        clock.now += TIMING.answer

        served = asyncio.create_task(inventory.snapshot())
        await asyncio.sleep(0)
        assert served.done()
        assert served.result().problem is Problem.DRIVER_HANGS
        await first


async def test_who_does_not_want_to_wait_gets_the_last_snapshot_and_has_the_next_one_made() -> None:
    link, clock = AnswersAtOnce(), Clock()
    async with opened(link, clock) as inventory:
        clock.now += 5
        link.reading = Reading(driver="560")

        before = inventory.latest()
        assert (before.driver, before.age_seconds) == ("550", 5)
        await inventory.snapshot()

        assert inventory.latest().driver == "560"
        assert link.reads == 2


async def test_the_driver_is_asked_also_while_nobody_wants_to_know() -> None:
    link, clock = AnswersAtOnce(), Clock()
    async with opened(link, clock, Timing(rest=0.001)) as inventory:
        # A scrape a minute, of which each shows what was read before it.
        for minute in range(3):
            clock.now += 60
            async with asyncio.timeout(30):
                while link.reads < minute + 2:
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0)

            assert inventory.latest().age_seconds <= FRESH_SECONDS


def test_one_reading_may_fail_and_the_figures_are_still_fresh() -> None:
    assert 2 * (Timing().rest + Timing().answer) <= FRESH_SECONDS


async def test_who_does_not_want_to_wait_learns_in_the_end_that_the_driver_hangs() -> None:
    link, clock = Hangs(), Clock()
    link.hanging = False
    async with opened(link, clock) as inventory:
        link.hanging = True
        clock.now += 2
        assert inventory.latest().problem is None
        while link.abandoned == 0:
            await asyncio.sleep(0.01)

        assert inventory.latest().problem is Problem.DRIVER_HANGS


async def test_a_driver_that_hangs_from_the_beginning_shows_no_devices() -> None:
    async with opened(Hangs(), Clock()) as inventory:
        snapshot = await inventory.snapshot()

    assert (snapshot.devices, snapshot.problem) == ((), Problem.DRIVER_HANGS)


@pytest.mark.parametrize("link", [Dies(), CannotStart()])
async def test_a_reader_that_keeps_dying_is_asked_less_and_less(link: AnswersAtOnce) -> None:
    clock = Clock()
    async with opened(link, clock) as inventory:
        for wait in (1, 2, 4, 8, 16, 32, 60, 60):
            before = link.reads
            clock.now += wait - 0.5
            assert (await inventory.snapshot()).problem is Problem.DRIVER_FAILED
            assert link.reads == before
            clock.now += 0.5
            await inventory.snapshot()
            assert link.reads == before + 1


async def test_a_machine_without_the_library_is_asked_rarely_and_keeps_no_process() -> None:
    link, clock = AnswersAtOnce(), Clock()
    link.reading = Reading(problem=Problem.NO_LIBRARY)
    async with opened(link, clock) as inventory:
        assert link.abandoned == 1
        clock.now += 59
        assert (await inventory.snapshot()).problem is Problem.NO_LIBRARY
        assert link.reads == 1
        clock.now += 1
        await inventory.snapshot()

    assert link.reads == 2


async def test_a_driver_that_says_it_cannot_be_used_offers_no_devices() -> None:
    link, clock = AnswersAtOnce(), Clock()
    async with opened(link, clock) as inventory:
        clock.now += 2
        link.reading = Reading(problem=Problem.DRIVER_MISMATCH)
        snapshot = await inventory.snapshot()

    assert (snapshot.devices, snapshot.problem) == ((), Problem.DRIVER_MISMATCH)


async def test_a_closed_inventory_serves_what_it_saw_last() -> None:
    link, clock = AnswersAtOnce(), Clock()
    async with opened(link, clock) as inventory:
        pass
    clock.now += 10

    snapshot = await inventory.snapshot()

    assert (snapshot.devices, snapshot.age_seconds) == ((CARD,), 10)
    assert link.reads == 1


def test_a_lost_card_comes_back_after_three_healthy_readings() -> None:
    recovery = Recovery()
    lost = Device(
        id="GPU-1",
        name="T4",
        memory_total_bytes=9,
        memory_used_bytes=1,
        memory_free_bytes=8,
        state=DeviceState.LOST,
    )

    def state(device: Device) -> DeviceState:
        return recovery.judge([device])[0].state

    assert state(CARD) is DeviceState.HEALTHY
    assert state(lost) is DeviceState.LOST
    assert state(CARD) is DeviceState.RECOVERING
    assert state(lost) is DeviceState.LOST
    assert state(CARD) is DeviceState.RECOVERING
    assert state(CARD) is DeviceState.RECOVERING
    assert state(CARD) is DeviceState.HEALTHY
    assert state(CARD) is DeviceState.HEALTHY
