"""Listening for the driver's errors."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from gpu.telemetry_xid import XID_EVENTS, XidWatch

TIMED_OUT, LOST, NOT_SUPPORTED = 10, 15, 3


class StandInError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class Events:
    """NVML's events; ``coming`` holds (handle, number) or a return code."""

    NVMLError = StandInError

    def __init__(self) -> None:
        self.coming: deque[tuple[int, int] | int] = deque()
        self.sets = 0
        self.registered: list[int] = []
        self.refuses = 0

    def nvmlEventSetCreate(self) -> int:  # noqa: N802 - the library's spelling
        self.sets += 1
        return self.sets

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: int) -> None:  # noqa: N802
        assert (kinds, events) == (XID_EVENTS, self.sets)
        if self.refuses:
            raise StandInError(self.refuses)
        self.registered.append(handle)

    def nvmlEventSetWait_v2(self, events: int, milliseconds: int) -> Any:  # noqa: N802
        assert (events, milliseconds) == (self.sets, 0)
        event = self.coming.popleft() if self.coming else TIMED_OUT
        if isinstance(event, int):
            raise StandInError(event)
        return SimpleNamespace(device=event[0], eventData=event[1])


def test_a_card_without_errors_has_the_number_zero() -> None:
    watch = XidWatch(Events())
    watch.watch(11, "GPU-a")
    watch.drain()

    assert watch.last("GPU-a") == 0
    assert watch.last("GPU-b") is None


def test_the_newest_error_of_each_card_is_kept() -> None:
    nvml = Events()
    watch = XidWatch(nvml)
    watch.watch(11, "GPU-a")
    watch.watch(12, "GPU-b")
    nvml.coming.extend([(11, 31), (12, 63), (11, 79), (99, 1)])
    watch.drain()
    watch.drain()

    assert (watch.last("GPU-a"), watch.last("GPU-b")) == (79, 63)


def test_a_card_is_listened_to_once() -> None:
    nvml = Events()
    watch = XidWatch(nvml)
    for _ in range(3):
        watch.watch(11, "GPU-a")

    assert (nvml.registered, nvml.sets) == ([11], 1)


def test_nothing_is_asked_before_somebody_listens() -> None:
    nvml = Events()
    nvml.coming.append((11, 31))

    XidWatch(nvml).drain()

    assert nvml.sets == 0
    assert len(nvml.coming) == 1


def test_a_library_that_is_begun_anew_is_listened_to_anew_and_nothing_is_forgotten() -> None:
    nvml = Events()
    watch = XidWatch(nvml)
    watch.watch(11, "GPU-a")
    nvml.coming.append((11, 31))
    watch.drain()
    watch.restart()
    watch.drain()
    assert watch.last("GPU-a") == 31

    watch.watch(21, "GPU-a")
    nvml.coming.append((21, 48))
    watch.drain()

    assert (watch.last("GPU-a"), nvml.sets) == (48, 2)


def test_a_driver_without_events_tells_no_number() -> None:
    nvml = Events()
    nvml.refuses = NOT_SUPPORTED
    watch = XidWatch(nvml)
    with pytest.raises(StandInError):
        watch.watch(11, "GPU-a")

    assert watch.last("GPU-a") is None


def test_a_lost_card_ends_a_reading_but_not_the_watch() -> None:
    nvml = Events()
    watch = XidWatch(nvml)
    watch.watch(11, "GPU-a")
    nvml.coming.extend([LOST, (11, 79)])
    watch.drain()
    watch.drain()

    assert watch.last("GPU-a") == 79


def test_a_storm_of_errors_does_not_hold_a_reading_up() -> None:
    class Storm(Events):
        def nvmlEventSetWait_v2(self, events: int, milliseconds: int) -> Any:  # noqa: N802
            return SimpleNamespace(device=11, eventData=13)

    watch = XidWatch(Storm())
    watch.watch(11, "GPU-a")
    watch.drain()

    assert watch.last("GPU-a") == 13
