"""The one place that talks to NVIDIA's management library; its calls block and may never return."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu.devices import Device, DeviceState, Problem, Reading

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    total: int
    used: int
    free: int


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
        self._by_index: dict[int, tuple[Device, ...]] = {}

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
        count = self._nvml.nvmlDeviceGetCount()
        devices: dict[str, Device] = {}
        problem = None
        for index in range(count):
            found, error = self._gpu(index)
            if error in ERROR_STATES:
                problem = Problem.GPU_LOST
            if error is not None:
                self._reinit_due = True
            for device in found:
                # A lost card remembered by its index may meanwhile have another index.
                if device.id not in devices or device.state is DeviceState.HEALTHY:
                    devices[device.id] = device
        driver = self._optional(self._nvml.nvmlSystemGetDriverVersion, default="")
        return Reading(devices=tuple(devices.values()), problem=problem, driver=str(driver))

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
            self._optional(self._nvml.nvmlShutdown, default=None)
            self._initialised_at = None
        self._nvml.nvmlInit()
        self._initialised_at = now
        self._reinit_due = False

    def _gpu(self, index: int) -> tuple[tuple[Device, ...], int | None]:
        """Return the devices of one card and the error that it answered, if any."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(self._nvml.nvmlDeviceGetUUID(handle))
            if self._mig_is_on(handle):
                found = self._instances(handle, uuid)
            else:
                found = (self._device(handle, uuid),)
        except self._nvml.NVMLError as error:
            number = _number(error)
            if number == UNINITIALIZED:
                raise
            state = ERROR_STATES.get(number, DeviceState.UNREADABLE)
            known = self._by_index.get(index, ())
            return tuple(replace(device, state=state, processes=()) for device in known), number
        self._by_index[index] = found
        return found, None

    def _mig_is_on(self, handle: Any) -> bool:
        modes = self._optional(lambda: self._nvml.nvmlDeviceGetMigMode(handle), default=(0, 0))
        return bool(modes[0] == 1)

    def _instances(self, handle: Any, parent: str) -> tuple[Device, ...]:
        count = self._optional(lambda: self._nvml.nvmlDeviceGetMaxMigDeviceCount(handle), default=0)
        found = []
        for index in range(count):
            device = self._optional(partial(self._instance, handle, index, parent), default=None)
            if device is not None:  # the numbering has holes
                found.append(device)
        return tuple(found)

    def _instance(self, handle: Any, index: int, parent: str) -> Device:
        instance = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        return self._device(instance, str(self._nvml.nvmlDeviceGetUUID(instance)), parent)

    def _device(self, handle: Any, uuid: str, parent: str | None = None) -> Device:
        memory = self._memory(handle)
        name = self._optional(lambda: self._nvml.nvmlDeviceGetName(handle), default="")
        rates = self._optional(
            lambda: self._nvml.nvmlDeviceGetUtilizationRates(handle), default=None
        )
        return Device(
            id=uuid,
            name=str(name) or uuid,
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
