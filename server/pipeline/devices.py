"""Devices: which one a run gets, which ones the page may offer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu.nodes import MIG_MINORS, device_nodes
from gpu.placement import free_devices, reason_params, why_not_free
from gpu.telemetry import Lease as Holder
from server.errors import ConflictError, InvalidRequestError, PersephoneError
from server.records import now
from server.states import Phase, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu.devices import Device, Snapshot
    from gpu.inventory import Inventory
    from server.records import Lease
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
    """The machine's GPUs and the leases on them; ``clock`` counts seconds and never jumps."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        inventory: Inventory,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._inventory = inventory
        self._clock = clock
        self._looked_at = clock()
        self._idle_since: dict[Lease, float] = {}
        self._ending: dict[str, Lease] = {}

    async def snapshot(self) -> Snapshot:
        """Return what the driver shows; never later than three seconds."""
        return await self._inventory.snapshot()

    def latest(self) -> Snapshot:
        """Return what the driver showed last, at once."""
        return self._inventory.latest()

    async def nodes(self, gpu_id: str) -> tuple[str, ...]:
        """Return the device nodes of a GPU; none for the CPU, and for one that is gone."""
        if gpu_id == CPU:
            return ()
        device = (await self.snapshot()).device(gpu_id)
        return () if device is None else await asyncio.to_thread(_nodes, device)

    def leases(self) -> dict[str, Holder]:
        """Return which run holds which GPU."""
        return {
            gpu: Holder(lease.run_id, self._store.runs[lease.run_id].model)
            for gpu, lease in self._store.leases.items()
            if lease.run_id in self._store.runs
        }

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
        device = _known(snapshot, gpu_id)
        self.refuse_unfree(device, run_id)
        return device.id

    async def refuse_unknown(self, gpu_id: str) -> None:
        """Raise InvalidRequestError if there is no such GPU."""
        if gpu_id != CPU:
            _known(await self.snapshot(), gpu_id)

    def refuse_unfree(self, device: Device, run_id: str, need_bytes: int = 0) -> None:
        """Raise ConflictError with the reason if the run cannot have the device."""
        reason = why_not_free(device, self._leased(), need_bytes=need_bytes, run_id=run_id)
        if reason is not None:
            raise ConflictError(reason, **reason_params(device, need_bytes))

    async def refuse_unavailable(self, gpu_id: str, run_id: str) -> None:
        """Raise ConflictError if a run cannot take again the GPU that it was prepared on."""
        device = (await self.snapshot()).device(gpu_id)
        if device is None:
            raise ConflictError("gpu_gone", gpu=gpu_id)
        self.refuse_unfree(device, run_id)

    def end_left_leases(self) -> None:
        """Mark for its end every lease that a killed service did not come to end.

        To be called before anything is started: a lease that was taken for a deployment, of a run
        that is deployed nowhere any more.
        """
        for lease in self._store.leases.values():
            prepared_at = self._store.preparation(lease.run_id).updated_at
            if self._is_idle(lease.run_id) and prepared_at and lease.taken_at > prepared_at:
                self._ending[lease.run_id] = lease

    async def release_if_unused(self, run_id: str) -> None:
        """End the lease of a run that is deployed nowhere any more, once its GPU is empty.

        What the disk does not let us end now is ended by :meth:`expire_leases`.
        """
        lease = self._store.lease_of(run_id)
        if lease is None or not self._is_idle(run_id):
            return
        await self._until_empty(lease.gpu_id)
        await self._end(lease)

    async def _end(self, lease: Lease) -> None:
        """End a lease, unless the run has got it anew meanwhile."""
        async with self._store.deciding(lease.run_id):
            try:
                if self._store.lease_of(lease.run_id) == lease and self._is_idle(lease.run_id):
                    await self._store.release_lease(lease.run_id)
            except PersephoneError as error:
                logger.warning("the lease of run %s cannot be ended: %s", lease.run_id, error)
                self._ending[lease.run_id] = lease
            else:
                self._ending.pop(lease.run_id, None)

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
        for lease in list(self._ending.values()):
            await self._end(lease)
        at = self._clock()
        leases = [one for one in self._store.leases.values() if self._is_idle(one.run_id)]
        # Who was not idle the last time has not been so for longer than that. The time before a
        # restart does not count: the clock may have been put meanwhile.
        longest = at - self._looked_at
        self._looked_at = at
        self._idle_since = {
            lease: self._idle_since.get(lease, at - min(longest, self._age(lease)))
            for lease in leases
        }
        for lease, since in self._idle_since.items():
            if at - since > self._settings.lease_seconds:
                logger.info("run %s was not deployed and loses its GPU", lease.run_id)
                await self._end(lease)

    def _age(self, lease: Lease) -> float:
        """Return for how many seconds a run may have been idle; the clock may have been put."""
        prepared_at = self._store.preparation(lease.run_id).updated_at or lease.taken_at
        since = max(lease.taken_at, prepared_at)
        return max(0.0, (now() - since).total_seconds())


def _nodes(device: Device) -> tuple[str, ...]:
    minors = ""
    if device.gpu_instance is not None:
        with contextlib.suppress(OSError):
            minors = MIG_MINORS.read_text(encoding="ascii")
    return device_nodes(device, minors)


def _known(snapshot: Snapshot, gpu_id: str) -> Device:
    device = snapshot.device(gpu_id)
    if device is None:
        raise InvalidRequestError("gpu_unknown", value=gpu_id)
    return device
