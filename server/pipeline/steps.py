"""The steps of a preparation, each real, in their order."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpu.driver import has_cuda_driver
from server.environments.fitting import fit
from server.errors import (
    BusyError,
    ConflictError,
    StepFailedError,
    StorageFullError,
    UnavailableError,
)
from server.faults import Point, Reached, nothing
from server.pipeline.devices import CPU
from server.pipeline.endings import abrupt_end, failure_of, last_event, report_in, seconds_in
from server.pipeline.files import settle_files, write_spec
from server.pipeline.packing import pack
from server.pipeline.passport import read_passport, sealed
from server.pipeline.report import other_python, planner
from server.pipeline.specs import PACKED, model_spec
from server.records import Params, Preparation, Text, now
from server.sandbox.events import Events, last_words, read_text
from server.sandbox.launch import REFUSED, Launch
from server.sandbox.model_process import ModelProcess, launch_of
from server.states import Phase, Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.environments.build import Environment, Environments
    from server.pipeline.devices import Devices
    from server.pipeline.report import InspectionReport
    from server.pipeline.usage import Usage
    from server.records import Run
    from server.sandbox.child import Child
    from server.sandbox.launch import Sandbox
    from server.settings import Settings
    from server.store.blobs import Blobs
    from server.store.run_logs import RunLogs
    from server.store.state import Store

logger = logging.getLogger(__name__)

_MEBIBYTE = 1024**2
_KEEP_TRIES = 10
_KEEP_PAUSE_SECONDS = 1.0
# Above what an archive may unpack to, which the inspecting process counts itself.
_INSPECT_FILE_BYTES = 5 * 1024**3 // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What the steps work with.

    ``models`` holds a folder per run, ``model_tree`` and ``inspect_tree`` the modules that
    the child processes may import, ``observe`` takes each step's outcome and its seconds.
    """

    settings: Settings
    blobs: Blobs
    devices: Devices
    environments: Environments
    sandbox: Sandbox
    usage: Usage
    models: Path
    specs: Path
    model_tree: Path
    inspect_tree: Path
    logs: RunLogs
    observe: Callable[[Step, Phase, float], None]
    reached: Reached = nothing


class Attempt:
    """One attempt at preparing one run."""

    def __init__(self, run: Run, made: Preparation, store: Store, workshop: Workshop) -> None:
        self._run = run
        self.made = made
        self._store = store
        self._workshop = workshop
        self._report: InspectionReport | None = None
        self._environment: Environment | None = None
        self._notes: list[Params] = []
        self._began = time.monotonic()
        # What is kept for the attempt until it ends.
        self._held = AsyncExitStack()

    async def work(self) -> None:
        """Do every step.

        Raises:
            PersephoneError: a step failed; it is still ``Running`` in ``made``.
        """
        async with AsyncExitStack() as self._held:
            try:
                await self._integrity()
                await self._inspect()
                await self._reserve()
                await self._build()
                passport = await self._prove()
            except BaseException:
                self._workshop.observe(self._current(), Phase.FAILED, self._seconds())
                raise
            await self._finish(passport)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _current(self) -> Step:
        running = (state.step for state in self.made.steps if state.status is Phase.RUNNING)
        return next(running, Step.INTEGRITY)

    def _mark(self, step: Step, status: Phase, text: Text) -> Preparation:
        at = now(self.made.updated_at)
        done = at if status is Phase.SUCCEEDED else None
        steps = tuple(
            replace(state, status=status, message=text, completed_at=done)
            if state.step is step
            else state
            for state in self.made.steps
        )
        return replace(self.made, steps=steps, updated_at=at)

    def _say(self, step: Step, code: str, params: Params | None = None) -> None:
        self.made = self._mark(step, Phase.RUNNING, Text(code=code, params=params or {}))
        self._store.show_progress(self.made)

    def _begin(self, step: Step, code: str, params: Params | None = None) -> None:
        self._workshop.reached(Point(f"prepare.{step}"))
        self._say(step, code, params)

    async def _done(self, step: Step, code: str, /, **params: Any) -> None:
        self.made = self._mark(step, Phase.SUCCEEDED, Text(code=code, params=params))
        try:
            await self._store.save_preparation(self.made)
        except (StorageFullError, UnavailableError) as error:
            # Worth no failure: what is taken up again after a restart begins anew anyway.
            logger.warning("a step of run %s cannot be kept: %s", self._run.run_id, error)
            self._store.show_progress(self.made)
        self._workshop.reached(Point(f"prepare.{step}.done"))
        self._workshop.observe(step, Phase.SUCCEEDED, self._seconds())
        self._began = time.monotonic()

    async def _integrity(self) -> None:
        self._begin(Step.INTEGRITY, "integrity_running", {"size": _size(self._run.size_bytes)})
        size = await self._workshop.blobs.verify(self._run.digest)
        await self._done(
            Step.INTEGRITY, "integrity_done", size=_size(size), digest=self._run.digest[:12]
        )

    @property
    def _confinement(self) -> Params:
        return {"sandbox": self._workshop.sandbox.level.value}

    @property
    def _folder(self) -> Path:
        return self._workshop.models / self._run.run_id

    async def _inspect(self) -> None:
        self._begin(Step.INSPECTION, "inspection_running", self._confinement)
        blob = self._workshop.blobs.path(self._run.digest)
        async with self._workshop.usage.unpacking(self._run):
            found = self._report = report_in(await self._look_into(blob))
            if refusal := self._workshop.sandbox.refusal(found.kind):
                raise StepFailedError(REFUSED, **refusal)
            await asyncio.to_thread(settle_files, blob, self._folder, found)
            self._workshop.reached(Point.PREPARE_SETTLED)
        self.made = replace(
            self.made, model_kind=found.kind, model_file=found.file, sample=found.sample
        )
        await self._done(Step.INSPECTION, "inspection_done", kind=found.kind, **self._confinement)

    async def _look_into(self, blob: Path) -> Params:
        launch = Launch(
            tree=self._workshop.inspect_tree,
            target="server.artifacts.child",
            arguments=[str(blob), str(self._folder)],
            read_only=[blob],
            writable=[self._folder],
            memory_bytes=self._workshop.settings.model_memory_bytes,
            file_bytes=_INSPECT_FILE_BYTES,
            cpu_seconds=math.ceil(self._workshop.settings.inspect_seconds),
            hear=self._workshop.logs.writer(self._run.run_id, Step.INSPECTION),
        )
        child = await self._workshop.sandbox.start(launch)
        seconds = self._workshop.settings.inspect_seconds
        try:
            self._workshop.reached(Point.PREPARE_INSPECTING)
            async with asyncio.timeout(seconds):
                return await last_event(child)
        except TimeoutError:
            raise StepFailedError("inspection_timed_out", seconds=round(seconds)) from None
        finally:
            await child.kill()

    async def _reserve(self) -> None:
        self._begin(Step.DEVICE, "device_running")
        if self.made.device == CPU:
            await self._done(Step.DEVICE, "device_cpu")
            return
        devices = self._workshop.devices
        device = (await devices.snapshot()).device(self.made.device)
        if device is None:
            raise StepFailedError("gpu_gone", gpu=self.made.device)
        try:
            devices.refuse_unfree(device, self._run.run_id)
        except ConflictError as error:
            raise StepFailedError(error.code, **error.params) from None
        await self._done(
            Step.DEVICE,
            "device_gpu",
            name=device.name,
            gpu=device.id,
            gb=round(device.memory_total_bytes / 1024**3, 1),
        )

    async def _build(self) -> None:
        self._begin(Step.ENVIRONMENT, "environment_running")
        assert self._report is not None  # noqa: S101 - _inspect set it
        environments = self._workshop.environments
        on_gpu = self.made.device != CPU and await has_cuda_driver()
        began = time.monotonic()
        plan_for = planner(self._report, "cuda" if on_gpu else "cpu")

        def say(code: str, params: Params) -> None:
            self._say(Step.ENVIRONMENT, code, params)

        wrote = self._report.made_with.get("python", "")
        requires = self._report.requires_python
        lock = await fit(environments, plan_for, say, prefer=wrote, requires=requires)
        self._notes = other_python(wrote, lock.python)
        self._workshop.reached(Point.PREPARE_LOCKED)
        self._environment = await self._held.enter_async_context(environments.using(lock, say))
        self.made = replace(self.made, environment=self._environment.digest)
        await self._done(
            Step.ENVIRONMENT,
            "environment_done",
            packages=len(lock.packages),
            digest=lock.digest[:12],
            seconds=round(time.monotonic() - began, 1),
        )

    async def _prove(self) -> Params:
        self._begin(Step.LOAD, "load_running", self._confinement)
        spec_folder = self._workshop.specs / self._run.run_id
        try:
            return await self._prove_by(spec_folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, spec_folder, ignore_errors=True)

    async def _prove_by(self, spec_folder: Path) -> Params:
        assert self._environment is not None  # noqa: S101 - _build set it
        settings = self._workshop.settings
        spec = model_spec(self._run, self.made, settings, self._folder)
        await asyncio.to_thread(write_spec, spec_folder, spec)
        self._workshop.reached(Point.PREPARE_SPEC)
        process = ModelProcess(
            command="prove",
            python=self._environment.python,
            environment=self._environment.root,
            tree=self._workshop.model_tree,
            folder=self._folder,
            spec=spec_folder / "spec.json",
            gpu="" if self.made.device == CPU else self.made.device,
            nodes=await self._workshop.devices.nodes(self.made.device),
            threads=spec["threads"],
            memory_bytes=settings.model_memory_bytes,
            # An endless loop ends even if nobody is left to watch the deadlines.
            cpu_seconds=math.ceil(
                spec["threads"] * (settings.load_seconds + settings.smoke_seconds)
            ),
            hear=self._workshop.logs.writer(self._run.run_id, Step.LOAD),
        )
        child = await self._workshop.sandbox.start(launch_of(process))
        try:
            self._workshop.reached(Point.PREPARE_PROVING)
            passport = await self._follow(child)
        finally:
            await child.kill()
        self._begin(Step.PASSPORT, "passport_running")
        sandbox, seconds = self._workshop.sandbox, settings.load_seconds
        size = await pack(sandbox, process, spec, passport, seconds)
        is_kept = size > 0 and await self._may_keep(self._folder / PACKED)
        warnings = [*self._notes, *passport["warnings"]]
        return {**passport, "warnings": warnings, "packed_bytes": size if is_kept else 0}

    async def _may_keep(self, added: Path) -> bool:
        """Count what was added to the run's folder; beyond what its owner may store it goes again."""
        usage = self._workshop.usage
        try:
            await usage.recount(self._run)
        except BusyError:
            await asyncio.to_thread(shutil.rmtree, added, ignore_errors=True)
            return False
        return True

    async def _follow(self, child: Child) -> Params:
        settings, events = self._workshop.settings, Events(child)
        try:
            async with asyncio.timeout(settings.load_seconds):
                loaded = await self._until(child, events, "loaded", Step.LOAD)
        except TimeoutError:
            raise StepFailedError("load_timeout", seconds=round(settings.load_seconds)) from None
        await self._done(Step.LOAD, "load_done", seconds=seconds_in(loaded))
        self._begin(Step.SMOKE, "smoke_running")
        try:
            async with asyncio.timeout(settings.smoke_seconds):
                event = await self._until(child, events, "passport", Step.SMOKE)
        except TimeoutError:
            raise StepFailedError(
                "smoke_test_timed_out", seconds=round(settings.smoke_seconds)
            ) from None
        passport = read_passport(event.get("passport"))
        await self._done(
            Step.SMOKE,
            "smoke_done",
            source=passport["warmup"]["source"],
            p50=round(passport["latency_ms"]["p50"], 2),
            p95=round(passport["latency_ms"]["p95"], 2),
        )
        return passport

    async def _until(self, child: Child, events: Events, wanted: str, step: Step) -> Params:
        """Follow the child's events up to the wanted one; its text is not trusted."""
        while (event := await events.next()) is not None:
            kind = event.get("event")
            if kind == wanted:
                return event
            if kind == "progress":
                with suppress(ValueError):
                    said = read_text(event)
                    self._say(step, said["code"], said["params"])
            if kind == "failed":
                raise await failure_of(child, event)
        raise abrupt_end(await child.wait(), last_words(child.log))

    async def _finish(self, passport: Params) -> None:
        assert self._environment is not None  # noqa: S101 - _build set it
        assert self._report is not None  # noqa: S101 - _inspect set it
        made_with, lock = self._report.made_with, self._environment.lock
        passport = sealed(passport, digest=self._run.digest, lock=lock, made_with=made_with)
        written = self._mark(
            Step.PASSPORT,
            Phase.SUCCEEDED,
            Text(
                code="passport_done",
                params={
                    "framework": passport["framework"],
                    "version": passport["framework_version"],
                    "device": passport["device"],
                    "warnings": passport["warnings"],
                },
            ),
        )
        self.made = replace(written, phase=Phase.SUCCEEDED, passport=passport)
        await self._keep_passport()
        self._workshop.reached(Point.PREPARE_PASSPORT_DONE)
        self._workshop.observe(Step.PASSPORT, Phase.SUCCEEDED, self._seconds())

    async def _keep_passport(self) -> None:
        """Keep what the whole preparation was for; a database that is held is waited for."""
        for _ in range(_KEEP_TRIES - 1):
            with suppress(UnavailableError):
                return await self._store.save_preparation(self.made)
            await asyncio.sleep(_KEEP_PAUSE_SECONDS)
        return await self._store.save_preparation(self.made)


def _size(size_bytes: int) -> str:
    if size_bytes < _MEBIBYTE:
        return f"{size_bytes / 1024:.3g} KB"
    return f"{size_bytes / _MEBIBYTE:.4g} MB"
