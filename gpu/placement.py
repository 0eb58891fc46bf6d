"""Which GPU is free, which is best, and why another is not: pure decisions on one snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu.devices import Device, DeviceState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

IDLE_BYTES = 1024**3
"""A device with at most this much in use counts as unused: contexts of a desktop, the driver's
reserve and leftovers take a few hundred MB."""
IDLE_SHARE = 0.25
"""On small devices (MIG instances) the limit is this share of the memory, if that is less."""

TAKEN = "gpu_taken"
BUSY = "gpu_busy"
MEMORY_IN_USE = "gpu_memory_in_use"
MEMORY_INSUFFICIENT = "gpu_memory_insufficient"
UNHEALTHY = "gpu_unhealthy"

MEBIBYTE = 1024**2


def free_devices(
    snapshot: Snapshot,
    leased: Mapping[str, str],
    own_pids: Collection[int] = (),
    need_bytes: int = 0,
    *,
    run_id: str | None = None,
) -> list[Device]:
    """Return the devices that ``run_id`` (or a new run) may take, best first.

    ``leased`` maps device ids to the runs that hold them. The best device has the most free
    memory, then the least load; equal ones keep the driver's order.
    """
    free = [
        device
        for device in snapshot.devices
        if why_not_free(device, leased, own_pids, need_bytes, run_id=run_id) is None
    ]
    return sorted(free, key=lambda device: (-device.memory_free_bytes, device.utilization or 0))


def why_not_free(
    device: Device,
    leased: Mapping[str, str],
    own_pids: Collection[int] = (),
    need_bytes: int = 0,
    *,
    run_id: str | None = None,
) -> str | None:
    """Return the code of the reason why the device cannot be taken, or None if it can.

    A device that ``run_id`` holds already is judged by its health and ``need_bytes`` only: the
    memory and the processes on it are the run's own. Load is no reason: it is zero between two
    requests. Inside a container the driver lists the host's process ids; any of them on a device
    that nobody leased is foreign there too.
    """
    holder = leased.get(device.id)
    if device.state is not DeviceState.HEALTHY:
        return UNHEALTHY
    if holder is not None and holder != run_id:
        return TAKEN
    if holder is None:
        if any(pid not in own_pids for pid in device.processes):
            return BUSY
        if device.memory_used_bytes > idle_bytes(device):
            return MEMORY_IN_USE
    if need_bytes > device.memory_free_bytes:
        return MEMORY_INSUFFICIENT
    return None


def idle_bytes(device: Device) -> int:
    """Return how many bytes may be in use on a device that counts as unused."""
    return min(IDLE_BYTES, int(device.memory_total_bytes * IDLE_SHARE))


def reason_params(device: Device, need_bytes: int = 0) -> dict[str, Any]:
    """Return the parameters of the sentences of :func:`why_not_free`; memory in MiB."""
    return {
        "gpu": device.name,
        "used": device.memory_used_bytes // MEBIBYTE,
        "free": device.memory_free_bytes // MEBIBYTE,
        "need": -(-need_bytes // MEBIBYTE),
    }
