"""Devices: which one a run gets, which ones the page may offer."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu.placement import free_devices, reason_params, why_not_free
from server.errors import ConflictError, InvalidRequestError
from server.records import now
from server.states import Phase, Wanted

if TYPE_CHECKING:
    from gpu.devices import Device, Snapshot
    from gpu.inventory import Inventory
    from server.settings import Settings
    from server.store.state import Store

logger = logging.getLogger(__name__)

CPU = "cpu"
_EMPTY_TRIES = 20
_EMPTY_PAUSE_SECONDS = 0.5
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

    async def release_if_unused(self, run_id: str) -> None:
        """End the lease of a run that is deployed nowhere any more, once its GPU is empty."""
        lease = self._store.lease_of(run_id)
        if lease is None or not self._is_idle(run_id):
            return
        await self._until_empty(lease.gpu_id)
        if self._is_idle(run_id):
            await self._store.release_lease(run_id)

    def _is_idle(self, run_id: str) -> bool:
        is_needed = any(
            made.wanted is Wanted.UP or made.serving_run_id == run_id
            for made in self._store.deployments_of(run_id)
        )
        return self._store.preparation(run_id).phase is Phase.SUCCEEDED and not is_needed

    async def _until_empty(self, gpu_id: str) -> None:
        """Wait until the driver shows no process on a GPU; a process that hangs is not ours."""
        for _ in range(_EMPTY_TRIES):
            device = (await self.snapshot()).device(gpu_id)
            if device is None or not device.processes:
                return
            await asyncio.sleep(_EMPTY_PAUSE_SECONDS)
        logger.warning("GPU %s still has processes after its run has ended", gpu_id)

    async def expire_leases(self) -> None:
        """End the leases of runs that were prepared long ago and never deployed."""
        for lease in list(self._store.leases.values()):
            if not self._is_idle(lease.run_id):
                continue
            prepared_at = self._store.preparation(lease.run_id).updated_at or lease.taken_at
            since = max(lease.taken_at, prepared_at)
            if (now() - since).total_seconds() > self._settings.lease_seconds:
                logger.info("run %s was not deployed and loses its GPU", lease.run_id)
                await self._store.release_lease(lease.run_id)
