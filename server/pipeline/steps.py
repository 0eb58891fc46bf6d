"""The steps of a preparation, each real, in their order."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpu.driver import has_cuda_driver
from server.environments.plan import plan
from server.errors import ConflictError, StepFailedError
from server.pipeline.devices import CPU
from server.pipeline.passport import read_passport
from server.pipeline.report import InspectionReport, read_report
from server.pipeline.specs import model_spec
from server.records import Params, Preparation, Text, now
from server.sandbox.events import last_words, read_event, read_failure, read_text
from server.sandbox.launch import Launch, base_prefix, base_python
from server.sandbox.model_process import ModelProcess, launch_of
from server.states import Phase, Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.environments.build import Environment, Environments
    from server.pipeline.devices import Devices
    from server.records import Run
    from server.sandbox.launch import Child, Sandbox
    from server.settings import Settings
    from server.store.blobs import Blobs
    from server.store.state import Store

logger = logging.getLogger(__name__)

_MEBIBYTE = 1024**2
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
    models: Path
    specs: Path
    model_tree: Path
    inspect_tree: Path
    observe: Callable[[Step, Phase, float], None]


class Attempt:
    """One attempt at preparing one run."""

    def __init__(self, run: Run, made: Preparation, store: Store, workshop: Workshop) -> None:
        self._run = run
        self.made = made
        self._store = store
        self._workshop = workshop
        self._report: InspectionReport | None = None
        self._environment: Environment | None = None
        self._began = time.monotonic()

    async def work(self) -> None:
        """Do every step.

        Raises:
            PersephoneError: a step failed; it is still ``Running`` in ``made``.
        """
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
        at = now()
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

    async def _done(self, step: Step, code: str, /, **params: Any) -> None:
        self.made = self._mark(step, Phase.SUCCEEDED, Text(code=code, params=params))
        await self._store.save_preparation(self.made)
        self._workshop.observe(step, Phase.SUCCEEDED, self._seconds())
        self._began = time.monotonic()

    async def _integrity(self) -> None:
        self._say(Step.INTEGRITY, "integrity_running", {"size": _size(self._run.size_bytes)})
        size = await self._workshop.blobs.verify(self._run.digest)
        await self._done(
            Step.INTEGRITY, "integrity_done", size=_size(size), digest=self._run.digest[:12]
        )

    @property
    def _folder(self) -> Path:
        return self._workshop.models / self._run.run_id

    async def _inspect(self) -> None:
        sandbox = self._workshop.sandbox.name
        self._say(Step.INSPECTION, "inspection_running", {"sandbox": sandbox})
        blob = self._workshop.blobs.path(self._run.digest)
        await asyncio.to_thread(_empty_folder, self._folder)
        launch = Launch(
            argv=[
                *(base_python(), "-I", "-S", "-c"),
                "import sys; sys.path.insert(0, sys.argv[1]);"
                "from server.artifacts.child import main; sys.exit(main(sys.argv[2:]))",
                *(str(self._workshop.inspect_tree), str(blob), str(self._folder)),
            ],
            read_only=[base_prefix(), self._workshop.inspect_tree, blob],
            writable=[self._folder],
            memory_bytes=self._workshop.settings.model_memory_bytes,
            file_bytes=_INSPECT_FILE_BYTES,
        )
        child = await self._workshop.sandbox.start(launch)
        seconds = self._workshop.settings.inspect_seconds
        try:
            async with asyncio.timeout(seconds):
                report = await _last_event(child)
        except TimeoutError:
            raise StepFailedError("inspection_timed_out", seconds=round(seconds)) from None
        finally:
            await child.kill()
        await self._take_report(report, blob)

    async def _take_report(self, report: Params, blob: Path) -> None:
        if report.get("ok") is not True:
            raise _named_failure(report)
        found = self._report = read_report(report)
        await asyncio.to_thread(_settle_files, blob, self._folder, found)
        self.made = replace(
            self.made, model_kind=found.kind, model_file=found.file, sample=found.sample
        )
        await self._done(
            Step.INSPECTION,
            "inspection_done",
            kind=self.made.model_kind,
            sandbox=self._workshop.sandbox.name,
        )

    async def _reserve(self) -> None:
        self._say(Step.DEVICE, "device_running")
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
        self._say(Step.ENVIRONMENT, "environment_running")
        assert self._report is not None  # noqa: S101 - _inspect set it
        environments = self._workshop.environments
        on_gpu = self.made.device != CPU and await has_cuda_driver()
        began = time.monotonic()
        chosen = plan(
            self._report.kind,
            self._report.format,
            self._report.requirements,
            "cuda" if on_gpu else "cpu",
            self._report.made_with,
        )

        def say(code: str, params: Params) -> None:
            self._say(Step.ENVIRONMENT, code, params)

        lock = await environments.lock(chosen, say)
        self._environment = await environments.build(lock, say)
        self.made = replace(self.made, environment=self._environment.digest)
        await self._done(
            Step.ENVIRONMENT,
            "environment_done",
            packages=len(lock.packages),
            digest=lock.digest[:12],
            seconds=round(time.monotonic() - began, 1),
        )

    async def _prove(self) -> Params:
        assert self._environment is not None  # noqa: S101 - _build set it
        self._say(Step.LOAD, "load_running", {"sandbox": self._workshop.sandbox.name})
        spec_folder = self._workshop.specs / self._run.run_id
        spec = model_spec(self._run, self.made, self._workshop.settings, self._folder)
        await asyncio.to_thread(_write_spec, spec_folder, spec)
        process = ModelProcess(
            command="prove",
            python=self._environment.python,
            environment=self._environment.root,
            tree=self._workshop.model_tree,
            folder=self._folder,
            spec=spec_folder / "spec.json",
            gpu="" if self.made.device == CPU else self.made.device,
            threads=spec["threads"],
            memory_bytes=self._workshop.settings.model_memory_bytes,
        )
        child = await self._workshop.sandbox.start(launch_of(process))
        try:
            return await self._follow(child)
        finally:
            await child.kill()
            await asyncio.to_thread(shutil.rmtree, spec_folder, ignore_errors=True)

    async def _follow(self, child: Child) -> Params:
        settings = self._workshop.settings
        try:
            async with asyncio.timeout(settings.load_seconds):
                loaded = await self._until(child, "loaded", Step.LOAD)
        except TimeoutError:
            raise StepFailedError("load_timeout", seconds=round(settings.load_seconds)) from None
        await self._done(Step.LOAD, "load_done", seconds=_seconds_in(loaded))
        self._say(Step.SMOKE, "smoke_running")
        try:
            async with asyncio.timeout(settings.smoke_seconds):
                event = await self._until(child, "passport", Step.SMOKE)
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

    async def _until(self, child: Child, wanted: str, step: Step) -> Params:
        """Follow the child's events up to the wanted one; its text is not trusted."""
        while (line := await child.line()) is not None:
            try:
                event = read_event(line)
            except ValueError:
                continue
            kind = event.get("event")
            if kind == wanted:
                return event
            if kind == "progress":
                with suppress(ValueError):
                    said = read_text(event)
                    self._say(step, said["code"], said["params"])
            if kind == "failed":
                raise _named_failure(event)
        raise _abrupt_end(await child.wait(), last_words(child.log))

    async def _finish(self, passport: Params) -> None:
        assert self._environment is not None  # noqa: S101 - _build set it
        self._say(Step.PASSPORT, "passport_running")
        lock = self._environment.lock
        passport = {
            **passport,
            "digest": self._run.digest,
            "lock": lock.text,
            "environment": lock.digest,
            "lock_device": lock.device,
        }
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
        await self._store.save_preparation(self.made)
        self._workshop.observe(Step.PASSPORT, Phase.SUCCEEDED, self._seconds())


def _size(size_bytes: int) -> str:
    if size_bytes < _MEBIBYTE:
        return f"{size_bytes / 1024:.3g} KB"
    return f"{size_bytes / _MEBIBYTE:.4g} MB"


def _empty_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _settle_files(blob: Path, folder: Path, report: InspectionReport) -> None:
    """Give a bare file its place: it needs no copy, the artifact itself is the model's file.

    Raises:
        StepFailedError: what was unpacked is not what was reported.
    """
    file = folder / report.file
    if not os.path.lexists(file):
        os.link(blob, file)
    names = [report.file, *([report.sample] if report.sample else [])]
    for name in names:
        with suppress(OSError):
            if stat.S_ISREG((folder / name).lstat().st_mode):
                continue
        raise StepFailedError("inspection_failed", evidence=name)


def _write_spec(folder: Path, spec: Params) -> None:
    _empty_folder(folder)
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")


async def _last_event(child: Child) -> Params:
    last = None
    while (line := await child.line()) is not None:
        last = line
    code = await child.wait()
    try:
        return read_event(last or "")
    except ValueError:
        raise _abrupt_end(code, last_words(child.log)) from None


def _named_failure(event: Params) -> StepFailedError:
    try:
        code, evidence, params = read_failure(event)
    except ValueError:
        return StepFailedError("step_crashed")
    return StepFailedError(code, evidence=evidence, **params)


def _abrupt_end(code: int, evidence: str) -> StepFailedError:
    if code in {-9, 137} or "MemoryError" in evidence or "bad_alloc" in evidence:
        return StepFailedError("out_of_memory", evidence=evidence)
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    return StepFailedError("child_ended", reason=reason, evidence=evidence)


def _seconds_in(event: Params) -> float:
    seconds = event.get("seconds")
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise StepFailedError("step_crashed", evidence="seconds")
    return round(float(seconds), 2)
