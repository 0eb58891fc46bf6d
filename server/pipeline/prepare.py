"""Prepare: the ordered steps that make a run deployable, one attempt at a time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from server.errors import ConflictError, NotFoundError, PersephoneError, StepFailedError
from server.faults import Point, Reached, nothing
from server.logs import run_id_var
from server.machine import explained
from server.pipeline.devices import CPU
from server.pipeline.quotas import check_preparation
from server.pipeline.steps import Attempt
from server.pipeline.turns import Turns
from server.records import Preparation, Text, now, planned_steps
from server.states import Phase, Step, Wanted

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from server.pipeline.devices import Devices
    from server.pipeline.steps import Workshop
    from server.records import Run, StepState
    from server.settings import Settings
    from server.store.state import Store

logger = logging.getLogger(__name__)

_RESUMES = 2
# Between two attempts to keep a failure: the first and the longest.
_KEEP_SECONDS = (0.5, 30.0)
# How long a start waits for the end of what is not taken up again: a full disk may not hold it up.
_HOPELESS_SECONDS = 2.0


class Prepare:
    """Starts preparations, shows them, and takes half-done ones up again after a restart."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        devices: Devices,
        workshop: Workshop,
        *,
        reached: Reached = nothing,
    ) -> None:
        self._settings = settings
        self._store = store
        self._devices = devices
        self._workshop = workshop
        self._reached = reached
        self._turns = Turns(settings.prepare_concurrency)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Runs that are in preparation or are about to be, with their owners.
        self._counted: dict[str, str] = {}

    async def open(self) -> None:
        """Resume what was under way when the service ended, or say that it was not."""
        hopeless = []
        for made in list(self._store.preparations.values()):
            if made.phase is not Phase.RUNNING:
                continue
            self._reached(Point.BOOT_RESUMING)
            run = self._store.runs[made.run_id]
            is_hopeless = made.resumed >= _RESUMES
            again = replace(
                made,
                resumed=made.resumed + 1,
                steps=made.steps if is_hopeless else planned_steps(),
                updated_at=now(made.updated_at),
            )
            self._store.show_progress(again)
            try:
                # Counted before anything is done: what it does may be what ended the service.
                if not is_hopeless:
                    await self._store.save_preparation(again)
            except PersephoneError as error:
                logger.warning("a resumed preparation cannot be counted: %s", error)
            self._launch(run, self._work(run, again))
            if is_hopeless:
                hopeless.append(self._tasks[run.run_id])
        if hopeless:
            # Kept before anybody is answered: killed right after its start again and again, the
            # service would never come to it.
            await asyncio.wait(hopeless, timeout=_HOPELESS_SECONDS)

    def resume(self, run: Run) -> None:
        """Go on with a preparation that was cancelled for a deletion that failed."""
        made = self._store.preparation(run.run_id)
        if run.run_id not in self._store.runs:
            return
        if made.phase is Phase.RUNNING:
            self._launch(run, self._work(run, replace(made, steps=planned_steps())))
        elif made.phase is Phase.FAILED:
            self._launch(run, self._keep(made))

    async def close(self) -> None:
        """Stop what is under way; it is resumed at the next start."""
        await asyncio.gather(*(self.cancel(run_id) for run_id in list(self._tasks)))

    async def start(self, run: Run, gpu_id: str | None) -> Preparation:
        """Start the run's preparation, or return the one that is under way or has succeeded.

        Raises:
            InvalidRequestError: there is no such GPU.
            ConflictError: the GPU is taken, or another device was asked for too late.
            BusyError: too many are waiting already.
        """
        async with self._store.deciding(run.run_id):
            if gpu_id not in {None, self._store.preparation(run.run_id).device}:
                # First: what else is in the way would be cleared away for nothing.
                await self._devices.refuse_unknown(gpu_id)
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
            self._count(run)
            try:
                fresh = await self._begin(made, gpu_id)
                self._reached(Point.PREPARE_LEASED)
            except BaseException:
                del self._counted[run.run_id]
                raise
            self._launch(run, self._work(run, fresh))
            return self._store.preparation(run.run_id)

    def _count(self, run: Run) -> None:
        owners = list(self._counted.values())
        check_preparation(self._settings, owners.count(run.owner), len(owners))
        self._counted[run.run_id] = run.owner

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
                updated_at=now(before.updated_at),
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

    def _launch(self, run: Run, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[run.run_id] = task
        self._counted[run.run_id] = run.owner
        task.add_done_callback(lambda _task: self._ended(run.run_id, task))

    def _ended(self, run_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(run_id) is task:
            del self._tasks[run_id]
            self._counted.pop(run_id, None)

    async def cancel(self, run_id: str) -> None:
        """End the run's preparation with its processes; none under way is success."""
        task = self._tasks.get(run_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _work(self, run: Run, made: Preparation) -> None:
        # One that is resumed after a restart has no request that named its run.
        run_id_var.set(run.run_id)
        if made.resumed > _RESUMES:
            await self._fail(made, Text(code="preparation_interrupted"))
            return
        attempt = Attempt(run, made, self._store, self._workshop)
        try:
            async with self._turns.place(run.owner):
                await attempt.work()
        except (PersephoneError, OSError) as error:
            text = _reason(error)
            # As much as its owner is told: whoever is called at night has the log only.
            told = PersephoneError(text.code, **text.params)
            cause = error.__cause__ if isinstance(error, PersephoneError) else error
            logger.warning(
                "preparation of run %s failed: %s%s",
                *(run.run_id, told, "" if cause is None else f", {cause!r}"),
            )
            if isinstance(error, StepFailedError):
                # None but the installer's is held back until it fails.
                hear = self._workshop.logs.writer(run.run_id, Step.ENVIRONMENT)
                for line in error.log:
                    hear(line)
            await self._fail(attempt.made, text)
        except Exception as error:
            logger.exception("preparation of run %s failed", run.run_id)
            await self._fail(attempt.made, _crash(type(error).__name__))

    async def _fail(self, made: Preparation, text: Text) -> None:
        at = now(made.updated_at)
        steps = list(made.steps)
        index = next(
            (i for i, state in enumerate(steps) if state.status is Phase.RUNNING),
            next((i for i, state in enumerate(steps) if state.status is Phase.PENDING), 0),
        )
        steps[index] = replace(steps[index], status=Phase.FAILED, message=text, completed_at=at)
        failed = replace(made, phase=Phase.FAILED, steps=tuple(steps), updated_at=at)
        try:
            self._reached(Point.PREPARE_FAILING)
            # What polls have seen once may not be taken back by a restart.
            await self._store.save_preparation(failed, release=True)
        except NotFoundError:
            return
        except (PersephoneError, OSError) as error:
            # A disk that is full must not leave it looking under way.
            logger.warning("a failed preparation cannot be kept: %s", error)
            self._store.show_progress(failed)
            await self._keep(failed)
        self._reached(Point.PREPARE_FAILED)

    async def _keep(self, failed: Preparation) -> None:
        """Keep a failure, and end its lease, as soon as the disk lets us."""
        pause, longest = _KEEP_SECONDS
        while True:
            try:
                # Unless the next attempt was faster.
                await self._store.save_preparation(failed, release=True, while_shown=True)
            except NotFoundError:
                return
            except PersephoneError as error:
                logger.warning("a failed preparation cannot be kept: %s", error)
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)


def _reason(error: PersephoneError | OSError) -> Text:
    known = explained(error) if isinstance(error, OSError) else error
    if known is None:
        return _crash(error.strerror if isinstance(error, OSError) else None)
    evidence = known.evidence if isinstance(known, StepFailedError) else ""
    return Text(
        code=known.code, params={**known.params, "evidence": evidence} if evidence else known.params
    )


def _crash(evidence: str | None) -> Text:
    return Text(code="step_crashed", params={"evidence": evidence} if evidence else {})


def _first_queued() -> tuple[StepState, ...]:
    first, *others = planned_steps()
    queued = replace(first, status=Phase.RUNNING, message=Text(code="step_queued"))
    return (queued, *others)
