"""Devices: which one a run gets, which ones the page may offer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu.placement import free_devices, reason_params, why_not_free
from server.errors import ConflictError, InvalidRequestError

if TYPE_CHECKING:
    from gpu.devices import Device, Snapshot
    from gpu.inventory import Inventory
    from server.settings import Settings
    from server.store.state import Store

CPU = "cpu"
_GIBIBYTE = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One entry of the page's list; memory in GiB."""

    id: str
    name: str
    memory_gb: float | None = None
    provider: str | None = None


class Devices:
    """The machine's GPUs and the leases on them."""

    def __init__(self, settings: Settings, store: Store, inventory: Inventory) -> None:
        self._settings = settings
        self._store = store
        self._inventory = inventory

    async def snapshot(self) -> Snapshot:
        """Return what the driver shows; never later than three seconds."""
        return await self._inventory.snapshot()

    def _leased(self) -> dict[str, str]:
        return {gpu: lease.run_id for gpu, lease in self._store.leases.items()}

    def free(self, snapshot: Snapshot, run_id: str | None = None) -> list[Device]:
        """Return the GPUs that the run may take, best first; its own one is among them."""
        return free_devices(snapshot, self._leased(), run_id=run_id)

    async def options(self, run_id: str) -> list[Option]:
        """Return what the page may offer for a run, best first, the CPU last."""
        offered = [
            Option(
                id=device.id,
                name=device.name,
                memory_gb=round(device.memory_total_bytes / _GIBIBYTE, 1),
                provider="nvidia",
            )
            for device in self.free(await self.snapshot(), run_id)
        ]
        if self._settings.offer_cpu:
            offered.append(Option(id=CPU, name="CPU"))
        return offered

    async def choose(self, gpu_id: str | None, run_id: str) -> str:
        """Return the device for a preparation: the one asked for, or the best free one.

        Raises:
            InvalidRequestError: there is no such GPU.
            ConflictError: it is not free, and why.
        """
        if gpu_id == CPU:
            return CPU
        snapshot = await self.snapshot()
        if gpu_id is None:
            free = self.free(snapshot, run_id)
            return free[0].id if free else CPU
        device = snapshot.device(gpu_id)
        if device is None:
            raise InvalidRequestError("gpu_unknown", value=gpu_id)
        self.refuse_unfree(device, run_id)
        return device.id

    def refuse_unfree(self, device: Device, run_id: str, need_bytes: int = 0) -> None:
        """Raise ConflictError with the reason if the run cannot have the device."""
        reason = why_not_free(device, self._leased(), need_bytes=need_bytes, run_id=run_id)
        if reason is not None:
            raise ConflictError(reason, **reason_params(device, need_bytes))

    async def take_again(self, gpu_id: str, run_id: str) -> None:
        """Take a GPU whose lease has ended for the run that was prepared on it.

        Raises:
            ConflictError: it is not there or not free.
        """
        device = (await self.snapshot()).device(gpu_id)
        if device is None:
            raise ConflictError("gpu_gone", gpu=gpu_id)
        self.refuse_unfree(device, run_id)
        await self._store.take_lease(gpu_id, run_id)
