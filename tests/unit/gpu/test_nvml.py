"""Reading NVML with a stand-in for its Python module: one failing call at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpu.devices import Card, DeviceState, Problem
from gpu.nvml import REINIT_AFTER_ERROR_SECONDS, REINIT_SECONDS, NvmlReader

NOT_SUPPORTED = 3


class StandInError(Exception):
    """What pynvml calls NVMLError."""

    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class StandIn:
    """Two idle cards; ``broken`` maps a function, or a function and a card, to a return code."""

    NVMLError = StandInError
    nvmlMemory_v2 = 2  # noqa: N815 - the library's spelling

    def __init__(self, **broken: int) -> None:
        self.broken: dict[str, int] = broken
        self.pids: list[int] = []
        self.inits = 0
        self.shutdowns = 0

    def _call(self, name: str, handle: object = "") -> None:
        for key in (name, f"{name}_{handle}", f"everything_{handle}"):
            if code := self.broken.get(key):
                raise StandInError(code)

    def nvmlInit(self) -> None:  # noqa: N802
        self.inits += 1
        self._call("init")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shutdowns += 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        self._call("driver")
        return "550"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._call("count")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._call("handle", index)
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        self._call("uuid", handle)
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        self._call("name", handle)
        return f"Card {handle}"

    def nvmlDeviceGetMinorNumber(self, handle: int) -> int:  # noqa: N802
        self._call("minor", handle)
        return 7 - handle

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:  # noqa: N802
        self._call("mig", handle)
        return 0, 0

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int = 1) -> Any:  # noqa: N802
        self._call(f"memory_v{version}", handle)
        return SimpleNamespace(total=1000, used=100 if version == 2 else 150, free=850)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        self._call("rates", handle)
        return SimpleNamespace(gpu=5, memory=2)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        self._call("power", handle)
        return 61_000

    def nvmlDeviceGetTemperatureV(self, handle: int, sensor: int) -> int:  # noqa: N802
        self._call("temperature_v", handle)
        return 41 + sensor

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        self._call("temperature", handle)
        return 40 + sensor

    def nvmlEventSetCreate(self) -> int:  # noqa: N802
        self._call("events")
        return 1

    def nvmlDeviceRegisterEvents(self, handle: int, _kinds: int, _set: int) -> None:  # noqa: N802
        self._call("register", handle)

    def nvmlEventSetWait_v2(self, _set: int, _milliseconds: int) -> Any:  # noqa: N802
        self._call("wait")
        raise StandInError(10)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: int) -> list[Any]:  # noqa: N802
        self._call("processes", handle)
        return [SimpleNamespace(pid=pid) for pid in self.pids]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_every_card_is_read_with_all_that_the_driver_tells() -> None:
    nvml = StandIn()
    nvml.pids = [12, 11]

    reading = NvmlReader(nvml).read()

    assert [device.id for device in reading.devices] == ["GPU-0", "GPU-1"]
    first = reading.devices[0]
    assert (first.name, first.processes, first.utilization) == ("Card 0", (11, 12), 5)
    assert [device.minor for device in reading.devices] == [7, 6]
    memory = (first.memory_total_bytes, first.memory_used_bytes, first.memory_free_bytes)
    assert memory == (1000, 100, 850)
    assert (reading.problem, reading.driver) == (None, "550")


CALLS = [
    *("name", "mig", "rates", "processes", "driver", "memory_v2", "power", "temperature_v", "minor")
]


@pytest.mark.parametrize("call", [*CALLS, "temperature", "events", "register", "wait"])
def test_a_call_that_the_driver_lacks_costs_only_its_own_figure(call: str) -> None:
    reading = NvmlReader(StandIn(**{call: NOT_SUPPORTED})).read()

    assert [device.state for device in reading.devices] == [DeviceState.HEALTHY] * 2
    assert reading.problem is None


def test_every_card_is_measured_with_all_that_the_driver_tells() -> None:
    cards = NvmlReader(StandIn()).read().cards

    assert [card.id for card in cards] == ["GPU-0", "GPU-1"]
    assert cards[1] == Card(
        id="GPU-1",
        index=1,
        name="Card 1",
        utilization=5,
        memory_utilization=2,
        power_milliwatts=61_000,
        temperature=41,
        xid=0,
    )


def test_a_driver_without_the_newer_temperature_call_is_asked_by_the_older_one() -> None:
    card = NvmlReader(StandIn(temperature_v=13)).read().cards[0]

    assert card.temperature == 40


def test_a_driver_that_measures_nothing_still_lists_its_cards() -> None:
    silent = dict.fromkeys(("rates", "power", "temperature_v", "temperature", "events"), 3)
    card = NvmlReader(StandIn(**silent)).read().cards[0]

    assert card == Card(id="GPU-0", index=0, name="Card 0")


def test_a_card_that_fails_is_still_known_by_its_number_and_measures_nothing() -> None:
    nvml = StandIn()
    reader = NvmlReader(nvml)
    reader.read()

    nvml.broken = {"everything_1": 15}

    assert reader.read().cards[1] == Card(id="GPU-1", index=1, name="Card 1", xid=0)


def test_a_driver_without_the_newer_memory_call_is_asked_by_the_older_one() -> None:
    reading = NvmlReader(StandIn(memory_v2=13)).read()

    assert reading.devices[0].memory_used_bytes == 150


def test_process_ids_that_cannot_be_are_dropped() -> None:
    nvml = StandIn()
    nvml.pids = [0, 4_294_967_295, 4_194_305, 31]

    assert NvmlReader(nvml).read().devices[0].processes == (31,)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (12, "no_library"),
        (9, "no_driver"),
        (4, "no_permission"),
        (18, "driver_mismatch"),
        (999, "driver_unreachable"),
        (15, "gpu_lost"),
        (23, "driver_failed"),
    ],
)
def test_a_library_that_does_not_start_names_the_problem(code: int, problem: str) -> None:
    reading = NvmlReader(StandIn(init=code)).read()

    assert (reading.devices, reading.problem) == ((), problem)


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (15, DeviceState.LOST),
        (16, DeviceState.RESET_REQUIRED),
        (999, DeviceState.UNREADABLE),
    ],
)
@pytest.mark.parametrize("call", ["handle_1", "uuid_1", "memory_v1_1", "everything_1"])
def test_a_card_that_fails_stays_in_the_list_by_its_name(
    call: str, code: int, state: DeviceState
) -> None:
    nvml = StandIn()
    reader = NvmlReader(nvml)
    reader.read()

    nvml.broken = {call: code, "memory_v2": NOT_SUPPORTED}
    first, second = reader.read().devices

    assert first.state is DeviceState.HEALTHY
    assert (second.id, second.state) == ("GPU-1", state)


def test_a_card_that_is_lost_from_the_beginning_does_not_hide_the_other() -> None:
    reading = NvmlReader(StandIn(handle_0=15)).read()

    assert [device.id for device in reading.devices] == ["GPU-1"]
    assert reading.problem is Problem.GPU_LOST


def test_a_library_that_was_shut_down_is_started_again_at_once() -> None:
    nvml = StandIn()
    reader = NvmlReader(nvml)
    reader.read()

    class Once(dict[str, int]):
        def get(self, key: str, default: Any = None) -> Any:
            return self.pop(key, default)

    nvml.broken = Once(count=1)

    assert len(reader.read().devices) == 2
    assert nvml.inits == 2


def test_the_library_is_started_again_every_few_minutes() -> None:
    nvml, clock = StandIn(), Clock()
    reader = NvmlReader(nvml, clock=clock)

    reader.read()
    clock.now = REINIT_SECONDS - 1
    reader.read()
    assert nvml.inits == 1
    clock.now = REINIT_SECONDS
    reader.read()

    assert (nvml.inits, nvml.shutdowns) == (2, 1)


def test_the_library_is_started_again_soon_after_a_card_failed() -> None:
    nvml, clock = StandIn(uuid_1=15), Clock()
    reader = NvmlReader(nvml, clock=clock)

    reader.read()
    reader.read()
    assert nvml.inits == 1
    clock.now = REINIT_AFTER_ERROR_SECONDS
    nvml.broken = {}

    assert len(reader.read().devices) == 2
    assert nvml.inits == 2
