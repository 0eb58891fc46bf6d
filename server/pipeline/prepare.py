"""Prepare: the ordered steps that make a run deployable, one attempt at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from server.errors import ConflictError, NotFoundError, PersephoneError, StepFailedError
from server.pipeline.devices import CPU
from server.pipeline.steps import Attempt
from server.records import Preparation, Text, now, planned_steps
from server.states import Phase, Wanted

if TYPE_CHECKING:
    from server.pipeline.devices import Devices
    from server.pipeline.steps import Workshop
    from server.records import Run, StepState
    from server.store.state import Store

logger = logging.getLogger(__name__)

_RESUMES = 2


class Prepare:
    """Starts preparations, shows them, and takes half-done ones up again after a restart."""

    def __init__(
        self, store: Store, devices: Devices, workshop: Workshop, *, concurrency: int
    ) -> None:
        self._store = store
        self._devices = devices
        self._workshop = workshop
        self._slots = asyncio.Semaphore(concurrency)
        self._starting: dict[str, asyncio.Lock] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Resume what was under way when the service ended, or say that it was not."""
        for made in list(self._store.preparations.values()):
            if made.phase is not Phase.RUNNING:
                continue
            run = self._store.runs[made.run_id]
            if made.resumed >= _RESUMES:
                await self._fail(made, Text(code="preparation_interrupted"))
                continue
            again = replace(made, resumed=made.resumed + 1, steps=planned_steps(), updated_at=now())
            await self._store.save_preparation(again)
            self._launch(run, again)

    async def close(self) -> None:
        """Stop what is under way; it is resumed at the next start."""
        await asyncio.gather(*(self._cancel(run_id) for run_id in list(self._tasks)))

    async def start(self, run: Run, gpu_id: str | None) -> Preparation:
        """Start the run's preparation, or return the one that is under way or has succeeded.

        Raises:
            InvalidRequestError: there is no such GPU.
            ConflictError: the GPU is taken, or another device was asked for too late.
        """
        async with self._starting.setdefault(run.run_id, asyncio.Lock()):
            made = self._store.preparation(run.run_id)
            same = gpu_id is None or gpu_id == made.device
            if made.phase is Phase.RUNNING and run.run_id in self._tasks:
                if same:
                    return made
                raise ConflictError("preparation_under_way", device=made.device)
            if made.phase is Phase.SUCCEEDED:
                if same:
                    return made
                if self._is_deployed(run.run_id):
                    raise ConflictError("device_in_use_by_deployment", device=made.device)
            fresh = await self._begin(made, gpu_id)
            self._launch(run, fresh)
            return self._store.preparation(run.run_id)

    async def _begin(self, before: Preparation, gpu_id: str | None) -> Preparation:
        """Take a device and keep the new attempt, in one transaction."""
        while True:
            device = await self._devices.choose(gpu_id, before.run_id)
            fresh = Preparation(
                run_id=before.run_id,
                attempt=before.attempt + 1,
                phase=Phase.RUNNING,
                device=device,
                steps=_first_queued(),
                updated_at=now(),
            )
            lease = None if device == CPU else device
            try:
                await self._store.save_preparation(fresh, lease=lease, release=lease is None)
            except ConflictError:
                # Somebody was faster; whoever did not ask for this one gets the next best.
                if gpu_id is not None:
                    raise
            else:
                return fresh

    def _is_deployed(self, run_id: str) -> bool:
        return any(made.wanted is Wanted.UP for made in self._store.deployments_of(run_id))

    def _launch(self, run: Run, made: Preparation) -> None:
        task = asyncio.create_task(self._work(run, made))
        self._tasks[run.run_id] = task
        task.add_done_callback(lambda _task: self._tasks.pop(run.run_id, None))

    async def cancel(self, run_id: str) -> None:
        """End the run's preparation with its processes; none under way is success."""
        await self._cancel(run_id)
        self._starting.pop(run_id, None)

    async def _cancel(self, run_id: str) -> None:
        task = self._tasks.get(run_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _work(self, run: Run, made: Preparation) -> None:
        attempt = Attempt(run, made, self._store, self._workshop)
        try:
            async with self._slots:
                await attempt.work()
        except PersephoneError as error:
            evidence = error.evidence if isinstance(error, StepFailedError) else ""
            params = {**error.params, "evidence": evidence} if evidence else error.params
            logger.warning("preparation of run %s failed: %s", run.run_id, error)
            await self._fail(attempt.made, Text(code=error.code, params=params))
        except Exception:
            logger.exception("preparation of run %s failed", run.run_id)
            await self._fail(attempt.made, Text(code="step_crashed"))

    async def _fail(self, made: Preparation, text: Text) -> None:
        at = now()
        steps = list(made.steps)
        index = next(
            (i for i, state in enumerate(steps) if state.status is Phase.RUNNING),
            next((i for i, state in enumerate(steps) if state.status is Phase.PENDING), 0),
        )
        steps[index] = replace(steps[index], status=Phase.FAILED, message=text, completed_at=at)
        failed = replace(made, phase=Phase.FAILED, steps=tuple(steps), updated_at=at)
        # Polls see it first: a disk that is full must not leave it looking under way.
        self._store.show_progress(failed)
        with suppress(NotFoundError):
            await self._store.save_preparation(failed, release=True)


def _first_queued() -> tuple[StepState, ...]:
    first, *others = planned_steps()
    queued = replace(first, status=Phase.RUNNING, message=Text(code="step_queued"))
    return (queued, *others)
