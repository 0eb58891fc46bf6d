"""Which GPUs there are: cached, never slow, never failing, whatever the driver does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpu.devices import Device, DeviceState, Problem, Reading, Snapshot
from gpu.link import Link, LinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How often the driver is asked and how long it is waited for, in seconds."""

    cache: float = 1.0
    answer: float = 2.5
    """A caller waits no longer; then the last good reading is served."""
    hang: float = 10.0
    """A call that takes longer never returns: the process is replaced. The first touch of a
    GPU may take seconds where persistence mode is off."""
    backoff: float = 1.0
    """Wait after the first failure; doubled by each further one."""
    backoff_limit: float = 60.0
    unusable: float = 5.0
    """Wait after a driver said that it cannot be used."""
    absent: float = 60.0
    """Wait when there is no driver library on this machine."""
    rest: float = 10.0
    """The driver is asked so often though nobody wants to know. Figures are of use to whoever scrapes
    seldom only if they are not as old as the scrape before."""


class Recovery:
    """Holds back a card that was lost until it was seen healthy several times in a row."""

    def __init__(self, *, needed: int = 3) -> None:
        self._needed = needed
        self._healthy: dict[str, int] = {}

    def judge(self, devices: Sequence[Device]) -> tuple[Device, ...]:
        """Return the devices, those that were lost lately as recovering."""
        return tuple(self._judge(device) for device in devices)

    def _judge(self, device: Device) -> Device:
        if device.state in {DeviceState.LOST, DeviceState.RESET_REQUIRED}:
            self._healthy[device.id] = 0
            return device
        if device.state is not DeviceState.HEALTHY or device.id not in self._healthy:
            return device
        self._healthy[device.id] += 1
        if self._healthy[device.id] < self._needed:
            return replace(device, state=DeviceState.RECOVERING)
        del self._healthy[device.id]
        return device


class Inventory:
    """The GPUs of this machine, read in a child process."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        timing: Timing | None = None,
        link: Link | None = None,
    ) -> None:
        """``clock`` counts seconds; nothing is started before :meth:`open`."""
        self._clock = clock
        self._timing = timing or Timing()
        self._link = link or Link()
        self._recovery = Recovery()
        self._last = Snapshot(devices=(), taken_at=clock())
        self._flight: asyncio.Task[None] | None = None
        self._flight_at = 0.0
        self._next_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._failures = 0
        self._is_open = False

    async def open(self) -> None:
        """Start reading; returns with the first snapshot or after its deadline."""
        self._is_open = True
        self._next_at = self._clock()
        await self.snapshot()
        self._asking = asyncio.create_task(self._keep_asking())

    async def close(self) -> None:
        """End the reading process; later snapshots are the last one."""
        self._is_open = False
        for task in (self._asking, self._flight):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._asking = self._flight = None
        await self._link.close()

    def latest(self) -> Snapshot:
        """Return the last snapshot without waiting, and have a newer one made for the next time."""
        self._begin()
        return self._served()

    async def snapshot(self) -> Snapshot:
        """Return the newest snapshot there is, within three seconds; raises nothing."""
        flight = self._begin()
        if flight is None:
            return self._served()
        left = self._flight_at + self._timing.answer - self._clock()
        if left > 0:
            await asyncio.wait({flight}, timeout=left)
        if flight.done():
            return self._served()
        return replace(self._served(), problem=Problem.DRIVER_HANGS)

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(self._timing.rest)
            self._begin()

    def _begin(self) -> asyncio.Task[None] | None:
        """Return the reading under way; one is begun if it is due."""
        now = self._clock()
        if self._flight is None and self._is_open and now >= self._next_at:
            self._flight_at = now
            self._flight = asyncio.create_task(self._refresh())
        return self._flight

    def _served(self) -> Snapshot:
        return replace(self._last, age_seconds=max(0.0, self._clock() - self._last.taken_at))

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(self._timing.hang):
                reading = await self._link.read()
        except TimeoutError:
            self._failed(Problem.DRIVER_HANGS)
        except (LinkError, OSError) as error:
            logger.warning("GPUs cannot be read: %s", error)
            self._failed(Problem.DRIVER_FAILED)
        else:
            self._succeeded(reading)
        finally:
            self._flight = None

    def _failed(self, problem: Problem) -> None:
        self._link.abandon()
        wait = min(self._timing.backoff * 2.0**self._failures, self._timing.backoff_limit)
        self._failures = min(self._failures + 1, 16)
        self._next_at = self._clock() + wait
        self._tell(problem)
        self._last = replace(self._last, problem=problem)

    def _succeeded(self, reading: Reading) -> None:
        now = self._clock()
        self._failures = 0
        if reading.problem is Problem.NO_LIBRARY:
            # No reason to keep a process for a library that is not there.
            self._link.abandon()
            self._next_at = now + self._timing.absent
        elif reading.problem not in {None, Problem.GPU_LOST}:
            self._next_at = now + self._timing.unusable
        else:
            self._next_at = now + self._timing.cache
        self._tell(reading.problem)
        self._last = Snapshot(
            devices=self._recovery.judge(reading.devices),
            cards=reading.cards,
            taken_at=now,
            problem=reading.problem,
            driver=reading.driver,
        )

    def _tell(self, problem: Problem | None) -> None:
        if problem is self._last.problem:
            return
        if problem is None:
            logger.info("GPUs can be read again")
        elif problem in {Problem.NO_LIBRARY, Problem.NO_DRIVER}:
            logger.info("no GPUs on this machine: %s", problem)
        else:
            logger.warning("GPUs: %s", problem)
