"""What is known about the GPUs of this machine: frozen records and their JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class DeviceState(StrEnum):
    """Whether a GPU can be worked with."""

    HEALTHY = "healthy"
    LOST = "lost"
    RESET_REQUIRED = "reset_required"
    UNREADABLE = "unreadable"
    RECOVERING = "recovering"


class Problem(StrEnum):
    """Why the list of GPUs is empty, old or incomplete; each has a sentence in ``gpu.po``."""

    NO_LIBRARY = "no_library"
    NO_DRIVER = "no_driver"
    NO_PERMISSION = "no_permission"
    DRIVER_MISMATCH = "driver_mismatch"
    DRIVER_UNREACHABLE = "driver_unreachable"
    DRIVER_HANGS = "driver_hangs"
    DRIVER_FAILED = "driver_failed"
    GPU_LOST = "gpu_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, or one MIG instance of a GPU, as the driver showed it."""

    id: str
    """UUID (``GPU-...`` or ``MIG-...``); it also works in CUDA_VISIBLE_DEVICES."""
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    memory_free_bytes: int
    """What a process can still take; less than total minus used by the driver's own reserve."""
    processes: tuple[int, ...] = ()
    """Process ids with a compute context; empty also if the driver does not tell."""
    utilization: int | None = None
    """Busy share of the last driver period in percent; None where the driver does not tell."""
    state: DeviceState = DeviceState.HEALTHY
    parent: str | None = None
    """UUID of the GPU that a MIG instance is a part of."""
    minor: int | None = None
    """Number of the device node, ``/dev/nvidia<minor>``; that of the GPU for a MIG instance."""
    gpu_instance: int | None = None
    compute_instance: int | None = None
    """Numbers of a MIG instance within its GPU; None for a whole GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What one GPU does at the moment, as a whole; None is what the driver does not tell."""

    id: str
    index: int
    """The driver's number, which may change when the machine restarts."""
    name: str
    utilization: int | None = None
    """Share of the last driver period in which something ran, in percent."""
    memory_utilization: int | None = None
    """Share of that period in which memory was read or written, in percent."""
    power_milliwatts: int | None = None
    temperature: int | None = None
    """In degrees Celsius."""
    xid: int | None = None
    """Number of the newest error that the driver reported (Xid); 0 if there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One answer of the driver."""

    devices: tuple[Device, ...] = ()
    cards: tuple[Card, ...] = ()
    problem: Problem | None = None
    driver: str = ""
    """Version of the driver; empty if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The last good reading and how old it is."""

    devices: tuple[Device, ...]
    cards: tuple[Card, ...] = ()
    taken_at: float
    """When the devices were read, in seconds of the inventory's clock."""
    age_seconds: float = 0.0
    problem: Problem | None = None
    """Why the devices are none, old or incomplete; None when all is well."""
    driver: str = ""

    def device(self, gpu_id: str) -> Device | None:
        """Return the device of this UUID, or None."""
        return next((device for device in self.devices if device.id == gpu_id), None)


def to_json(reading: Reading) -> dict[str, Any]:
    """Return the reading as JSON values."""
    return asdict(reading)


def from_json(values: dict[str, Any]) -> Reading:
    """Read what :func:`to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: the values are of another form.
    """
    devices = []
    for fields in values["devices"]:
        state = DeviceState(fields.pop("state"))
        processes = tuple(int(pid) for pid in fields.pop("processes"))
        devices.append(Device(state=state, processes=processes, **fields))
    problem = values["problem"]
    return Reading(
        devices=tuple(devices),
        cards=tuple(Card(**fields) for fields in values["cards"]),
        problem=None if problem is None else Problem(problem),
        driver=str(values["driver"]),
    )
