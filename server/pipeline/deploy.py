"""Deploy: say what is wanted of a run in an environment; the reconciler makes it so."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from server.errors import ConflictError, NotFoundError
from server.faults import Point, Reached, nothing
from server.pipeline.devices import CPU
from server.records import Deployment, DeploymentKey, Preparation, Run, now
from server.states import Phase, Wanted, public_phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from server.pipeline.devices import Devices
    from server.pipeline.usage import Usage
    from server.reconcile.reconciler import Reconciler
    from server.settings import Settings
    from server.store.state import Store


class Deploy:
    """Roll-outs of runs, one model and environment at a time."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        devices: Devices,
        reconciler: Reconciler,
        usage: Usage,
        *,
        asked: Callable[[Deployment], None] = lambda _made: None,
        reached: Reached = nothing,
    ) -> None:
        """``asked`` is told what a request wants, before anything is done for it."""
        self._settings = settings
        self._store = store
        self._devices = devices
        self._reconciler = reconciler
        self._usage = usage
        self._asked = asked
        self._reached = reached
        # Held from the look at a quota until what it lets through is counted.
        self._counting = asyncio.Lock()

    @staticmethod
    def key(run: Run, environment: str) -> DeploymentKey:
        """Return the deployment that a run belongs to in an environment."""
        return DeploymentKey(owner=run.owner, model=run.model, environment=environment)

    def find(self, run: Run, environment: str) -> Deployment | None:
        """Return the run's deployment; None if it never was, or another run replaced it."""
        made = self._store.deployments.get(self.key(run, environment))
        return made if made is not None and made.run_id == run.run_id else None

    def phase(self, made: Deployment) -> Phase:
        """Return the phase of a deployment's newest roll-out."""
        return public_phase(made.wanted, made.version, self._reconciler.seen(made))

    async def start(self, run: Run, environment: str, replicas: int | None) -> Deployment:
        """Want the run to be up: the roll-out under way, or a new version.

        ``replicas`` is how many of it; None means as the settings say.

        Raises:
            ConflictError: the run is not prepared, or its GPU cannot be had again.
            BusyError: a quota is used up.
        """
        key = self.key(run, environment)
        while True:
            # What was deleted a moment ago had versions of the same numbers. It is waited for
            # without a lock, as it takes the locks of runs to give their GPUs back.
            await self._reconciler.gone(key)
            async with self._store.deciding(run.run_id), self._store.deciding(key):
                if not self._reconciler.is_going(key):
                    return await self._start(run, key, replicas)

    async def _start(self, run: Run, key: DeploymentKey, replicas: int | None) -> Deployment:
        prepared = self._store.preparation(run.run_id)
        if prepared.phase is not Phase.SUCCEEDED:
            raise ConflictError("not_prepared", phase=prepared.phase.value)
        known = self._store.deployments.get(key)
        if known is not None and known.run_id == run.run_id and self.phase(known) is Phase.RUNNING:
            return known
        count = replicas or self._settings.replicas_in(key.environment)
        self._usage.check_deployment(key, count)
        await self._hold_device(run, prepared, known, count)
        at = now(*_times(known), _after(prepared.updated_at))
        made = Deployment(
            key=key,
            port=0 if known is None else known.port,
            wanted=Wanted.UP,
            version=1 if known is None else known.version + 1,
            run_id=run.run_id,
            wanted_at=at,
            replicas=count,
            first_wanted_at=at if known is None else known.first_wanted_at,
        )
        lease = None if prepared.device == CPU else prepared.device
        async with self._counting:
            self._usage.check_deployment(key, count)
            self._asked(made)
            await self._store.want(made, lease=lease)
        self._reached(Point.DEPLOY_WANTED)
        self._reconciler.poke(key)
        return self._store.deployments[key]

    async def _hold_device(
        self, run: Run, prepared: Preparation, known: Deployment | None, replicas: int
    ) -> None:
        if prepared.device == CPU:
            return
        if self._store.lease_of(run.run_id) is None:
            await self._devices.refuse_unavailable(prepared.device, run.run_id)
        if known is None or known.serving_run_id is None:
            return
        device = (await self._devices.snapshot()).device(prepared.device)
        before = self._store.preparation(known.serving_run_id).device
        if device is None or before != prepared.device:
            return
        # The new version stands beside the old one until it has answered.
        need = replicas * int((prepared.passport or {}).get("peak_memory_bytes", 0))
        self._devices.refuse_unfree(device, run.run_id, need)

    async def stop(self, run: Run, environment: str) -> Deployment:
        """Want the run's deployment to be down.

        Raises:
            NotFoundError: the run is not deployed there.
        """
        async with self._store.deciding(self.key(run, environment)):
            made = self.find(run, environment)
            if made is None or made.wanted is Wanted.STOPPED:
                raise NotFoundError("not_deployed", environment=environment)
            made = replace(made, wanted=Wanted.STOPPED)
            self._asked(made)
            await self._store.want(made)
            self._reached(Point.STOP_WANTED)
        self._reconciler.poke(made.key)
        return self._store.deployments[made.key]


def _times(known: Deployment | None) -> tuple[datetime | None, ...]:
    return () if known is None else (known.wanted_at, known.seen_at)


def _after(moment: datetime | None) -> datetime | None:
    # Strictly: by its time a lease that a deployment took is told from that of a preparation.
    return None if moment is None else moment + timedelta(microseconds=1)
