"""The one place that talks to NVIDIA's management library; its calls block and may never return."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu.devices import Card, Device, DeviceState, Problem, Reading
from gpu.telemetry_xid import XidWatch

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

REINIT_SECONDS = 300.0
"""A running library does not see reloaded drivers and re-added cards; a fresh one does."""
REINIT_AFTER_ERROR_SECONDS = 5.0

MAX_PID = 4_194_304
"""The kernel's upper limit. Some drivers scramble the list; such entries are dropped."""

# Numbers of NVML's return codes: pynvml has them too, but tests need no library to name them.
UNINITIALIZED = 1
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
UNKNOWN = 999

INIT_PROBLEMS = {
    LIBRARY_NOT_FOUND: Problem.NO_LIBRARY,
    DRIVER_NOT_LOADED: Problem.NO_DRIVER,
    NO_PERMISSION: Problem.NO_PERMISSION,
    LIB_RM_VERSION_MISMATCH: Problem.DRIVER_MISMATCH,
    GPU_IS_LOST: Problem.GPU_LOST,
    UNKNOWN: Problem.DRIVER_UNREACHABLE,
}
ERROR_STATES = {
    GPU_IS_LOST: DeviceState.LOST,
    RESET_REQUIRED: DeviceState.RESET_REQUIRED,
}


SENSOR_OF_THE_GPU = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    total: int
    used: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """One card: as a whole, and as the devices that can be worked with."""

    card: Card
    devices: tuple[Device, ...]


class NvmlReader:
    """Reads the state of all GPUs, one bad GPU or missing call at a time."""

    def __init__(self, nvml: Any = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take ``pynvml`` or a stand-in; nothing is loaded before the first reading."""
        if nvml is None:
            import pynvml  # noqa: PLC0415 - only the process that reads pays for it

            nvml = pynvml
        self._nvml = nvml
        self._clock = clock
        self._initialised_at: float | None = None
        self._reinit_due = False
        self._by_index: dict[int, _Seen] = {}
        self._xids = XidWatch(nvml)

    def read(self) -> Reading:
        """Read every GPU once. Blocks for as long as the driver does; raises nothing."""
        try:
            return self._read()
        except self._nvml.NVMLError as error:
            if _number(error) != UNINITIALIZED:
                return self._nothing(error)
        self._initialised_at = None
        try:
            return self._read()
        except self._nvml.NVMLError as error:
            return self._nothing(error)

    def _read(self) -> Reading:
        self._initialise()
        self._xids.drain()
        count = self._nvml.nvmlDeviceGetCount()
        devices: dict[str, Device] = {}
        cards: dict[str, Card] = {}
        problem = None
        for index in range(count):
            found, error = self._gpu(index)
            if error in ERROR_STATES:
                problem = Problem.GPU_LOST
            if error is not None:
                self._reinit_due = True
            if found is None:
                continue
            # A lost card remembered by its index may meanwhile have another index.
            if found.card.id not in cards or error is None:
                cards[found.card.id] = found.card
            for device in found.devices:
                if device.id not in devices or device.state is DeviceState.HEALTHY:
                    devices[device.id] = device
        driver = self._optional(self._nvml.nvmlSystemGetDriverVersion, default="")
        return Reading(
            devices=tuple(devices.values()),
            cards=tuple(cards.values()),
            problem=problem,
            driver=str(driver),
        )

    def _nothing(self, error: Exception) -> Reading:
        number = _number(error)
        self._initialised_at = None
        problem = INIT_PROBLEMS.get(number, Problem.DRIVER_FAILED)
        logger.debug("NVML cannot be used: %s (%d)", error, number)
        return Reading(problem=problem)

    def _initialise(self) -> None:
        now = self._clock()
        if self._initialised_at is not None:
            wait = REINIT_AFTER_ERROR_SECONDS if self._reinit_due else REINIT_SECONDS
            if now - self._initialised_at < wait:
                return
            self._xids.drain()
            self._optional(self._nvml.nvmlShutdown, default=None)
            self._initialised_at = None
        self._xids.restart()
        self._nvml.nvmlInit()
        self._initialised_at = now
        self._reinit_due = False

    def _gpu(self, index: int) -> tuple[_Seen | None, int | None]:
        """Return one card and the error that it answered, if any; None if it is not known."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(self._nvml.nvmlDeviceGetUUID(handle))
            minor = self._optional(
                lambda: self._nvml.nvmlDeviceGetMinorNumber(handle), default=None
            )
            if self._mig_is_on(handle):
                devices = self._instances(handle, uuid, minor)
            else:
                devices = (replace(self._device(handle, uuid), minor=minor),)
            found = _Seen(card=self._card(handle, uuid, index), devices=devices)
        except self._nvml.NVMLError as error:
            number = _number(error)
            if number == UNINITIALIZED:
                raise
            state = ERROR_STATES.get(number, DeviceState.UNREADABLE)
            known = self._by_index.get(index)
            return None if known is None else self._unwell(known, state), number
        self._by_index[index] = found
        return found, None

    def _unwell(self, known: _Seen, state: DeviceState) -> _Seen:
        """Return what is left of a card that does not answer: who it is, and its last error."""
        card = known.card
        return _Seen(
            card=Card(id=card.id, index=card.index, name=card.name, xid=self._xids.last(card.id)),
            devices=tuple(replace(one, state=state, processes=()) for one in known.devices),
        )

    def _card(self, handle: Any, uuid: str, index: int) -> Card:
        nvml = self._nvml
        rates = self._optional(lambda: nvml.nvmlDeviceGetUtilizationRates(handle), default=None)
        power = self._optional(lambda: nvml.nvmlDeviceGetPowerUsage(handle), default=None)
        self._optional(lambda: self._xids.watch(handle, uuid), default=None)
        return Card(
            id=uuid,
            index=index,
            name=self._name(handle) or uuid,
            utilization=None if rates is None else int(rates.gpu),
            memory_utilization=None if rates is None else int(rates.memory),
            power_milliwatts=None if power is None else int(power),
            temperature=self._temperature(handle),
            xid=self._xids.last(uuid),
        )

    def _name(self, handle: Any) -> str:
        return str(self._optional(lambda: self._nvml.nvmlDeviceGetName(handle), default=""))

    def _temperature(self, handle: Any) -> int | None:
        """Ask the newer call first: newer libraries lack the older one."""
        nvml, sensor = self._nvml, SENSOR_OF_THE_GPU
        for call in (nvml.nvmlDeviceGetTemperatureV, nvml.nvmlDeviceGetTemperature):
            degrees = self._optional(partial(call, handle, sensor), default=None)
            if degrees is not None:
                return int(degrees)
        return None

    def _mig_is_on(self, handle: Any) -> bool:
        modes = self._optional(lambda: self._nvml.nvmlDeviceGetMigMode(handle), default=(0, 0))
        return bool(modes[0] == 1)

    def _instances(self, handle: Any, parent: str, minor: int | None) -> tuple[Device, ...]:
        count = self._optional(lambda: self._nvml.nvmlDeviceGetMaxMigDeviceCount(handle), default=0)
        found = []
        for index in range(count):
            device = self._optional(partial(self._instance, handle, index, parent), default=None)
            if device is not None:  # the numbering has holes
                found.append(replace(device, minor=minor))
        return tuple(found)

    def _instance(self, handle: Any, index: int, parent: str) -> Device:
        instance = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        device = self._device(instance, str(self._nvml.nvmlDeviceGetUUID(instance)), parent)
        numbers = (
            self._optional(partial(ask, instance), default=None)
            for ask in (
                self._nvml.nvmlDeviceGetGpuInstanceId,
                self._nvml.nvmlDeviceGetComputeInstanceId,
            )
        )
        gpu_instance, compute_instance = numbers
        return replace(device, gpu_instance=gpu_instance, compute_instance=compute_instance)

    def _device(self, handle: Any, uuid: str, parent: str | None = None) -> Device:
        memory = self._memory(handle)
        rates = self._optional(
            lambda: self._nvml.nvmlDeviceGetUtilizationRates(handle), default=None
        )
        return Device(
            id=uuid,
            name=self._name(handle) or uuid,
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.used,
            memory_free_bytes=memory.free,
            processes=self._processes(handle),
            utilization=None if rates is None else int(rates.gpu),
            parent=parent,
        )

    def _memory(self, handle: Any) -> _Memory:
        """Version 2 tells the driver's own reserve apart; older drivers have only version 1."""
        nvml = self._nvml
        info = self._optional(
            lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2), default=None
        )
        if info is None:
            info = nvml.nvmlDeviceGetMemoryInfo(handle)
        return _Memory(total=int(info.total), used=int(info.used), free=int(info.free))

    def _processes(self, handle: Any) -> tuple[int, ...]:
        entries = self._optional(
            lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle), default=()
        )
        pids = {int(entry.pid) for entry in entries}
        return tuple(sorted(pid for pid in pids if 0 < pid <= MAX_PID))

    def _optional(self, call: Callable[[], Any], *, default: Any) -> Any:
        """Return what ``call`` answers, or ``default`` where this driver or device cannot.

        Raises:
            NVMLError: the card is lost or the library was shut down; that is never optional.
        """
        try:
            return call()
        except self._nvml.NVMLError as error:
            if _number(error) in {UNINITIALIZED, *ERROR_STATES}:
                raise
            return default
        except ValueError:  # a name that is no text
            return default


def _number(error: Exception) -> int:
    return int(getattr(error, "value", UNKNOWN))
