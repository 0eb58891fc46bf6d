"""The real service around models without weight: no process is started, nothing takes its time.

API, pipeline, store, reconciler and leases are the product's own. What a model does is told by the
name of its file, as ``Model`` says; gates hold back how far models come.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

from aiohttp import web

from gpu.devices import Device, Snapshot
from server import app, keys, records
from server.api.edge import make_runner
from server.app import create_app
from server.engines.base import EngineError, ReplicaSpec
from server.errors import StepFailedError
from server.pipeline.devices import Devices
from server.pipeline.steps import Attempt
from server.records import Text
from server.settings import Settings
from server.states import Phase, Step
from tests.support.engines import InProcessEngine, InProcessReplica, spec_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from server.engines.base import Replica
    from server.records import Deployment
    from server.sandbox.launch import Sandbox
    from server.store.state import Store

_GIBIBYTE = 1024**3
_PREPARATIONS_AT_ONCE = 64
_PROBED: list[Sandbox] = []  # once for all services: nothing is started in it
# Not to be copied, or made anew.
_LEFT_OUT = ("persephone.db*", "reserve", "operator.sock")
# More than anybody here asks for.
_QUOTAS = dict.fromkeys(
    (
        "max_sessions_per_hour",
        "max_uploads",
        "max_uploads_per_owner",
        "max_runs_per_hour",
        "max_queued_preparations",
        "max_queued_preparations_per_owner",
    ),
    1000,
)


class Model(StrEnum):
    """What becomes of a model, by the name of its file."""

    SOUND = "sound.onnx"
    UNREADABLE = "unreadable.onnx"
    """Fails while it is inspected, before the gate."""
    UNLOADABLE = "unloadable.onnx"
    """Fails while it is loaded, behind the gate."""
    UNSERVABLE = "unservable.onnx"
    """Is prepared, and then refuses to serve: another try would end the same way."""


@dataclass
class Machine:
    """What is there whether the service runs or not: cards, and how far models may come."""

    cards: tuple[str, ...] = ("GPU-a", "GPU-b")
    busy: set[str] = field(default_factory=set)
    """Cards on which a process runs that is none of ours."""
    ahead_seconds: float = 0
    """How far its clock is ahead of the real one."""
    is_holding: bool = False
    """Whether the gates are shut: preparations wait before they load, replicas to be ready."""
    used: Counter[str] = field(default_factory=Counter)
    """Processes of ours by card."""
    preparing: Counter[str] = field(default_factory=Counter)
    """Preparations under way by run."""
    most_preparing: int = 0
    """The most preparations of one run that ever were under way together."""
    serving: list[InProcessReplica] = field(default_factory=list)
    """Replicas whose process is there."""
    _opened: asyncio.Event | None = None

    def hold(self) -> None:
        """Shut the gates."""
        if not self.is_holding:
            self.is_holding = True
            self._opened = asyncio.Event()

    def let_go(self) -> None:
        """Open the gates."""
        self.is_holding = False
        if self._opened is not None:
            self._opened.set()

    def clock(self) -> float:
        """Return its seconds, from some moment on."""
        return time.monotonic() + self.ahead_seconds

    async def pass_gate(self) -> None:
        if self.is_holding:
            assert self._opened is not None
            await self._opened.wait()

    @contextlib.contextmanager
    def process(self, gpu: str) -> Iterator[None]:
        """A process of ours that may use a card."""
        self.used[gpu] += 1
        try:
            yield
        finally:
            self.used[gpu] -= 1


class WeightlessInventory:
    """Shows the machine's cards."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def snapshot(self) -> Snapshot:
        await asyncio.sleep(0)
        return Snapshot(devices=tuple(map(self._device, self._machine.cards)), taken_at=0)

    def _device(self, card: str) -> Device:
        strangers = [1] if card in self._machine.busy else []
        ours = range(2, 2 + self._machine.used[card])
        return Device(
            id=card,
            name="Weightless",
            memory_total_bytes=80 * _GIBIBYTE,
            memory_used_bytes=0,
            memory_free_bytes=80 * _GIBIBYTE,
            processes=(*strangers, *ours),
        )


class WeightlessAttempt(Attempt):
    """A preparation whose steps are the product's but for what needs a process."""

    machine: Machine

    async def work(self) -> None:
        machine, run_id = self.machine, self._run.run_id
        machine.preparing[run_id] += 1
        machine.most_preparing = max(machine.most_preparing, machine.preparing[run_id])
        try:
            await super().work()
        finally:
            machine.preparing[run_id] -= 1

    async def _inspect(self) -> None:
        self._say(Step.INSPECTION, "inspection_running", {"sandbox": "none"})
        await asyncio.sleep(0)
        if self._run.file_name == Model.UNREADABLE:
            raise StepFailedError("inspection_failed")
        await self._done(Step.INSPECTION, "inspection_done", kind="onnx", sandbox="none")

    async def _build(self) -> None:
        self._say(Step.ENVIRONMENT, "environment_running")
        await self._done(
            Step.ENVIRONMENT, "environment_done", packages=1, digest="0" * 12, seconds=0
        )

    async def _prove(self) -> dict[str, Any]:
        with self.machine.process(self.made.device):
            self._say(Step.LOAD, "load_running", {"sandbox": "none"})
            await self.machine.pass_gate()
            await asyncio.sleep(0)
            if self._run.file_name == Model.UNLOADABLE:
                raise StepFailedError("out_of_memory")
            await self._done(Step.LOAD, "load_done", seconds=0)
            await self._done(Step.SMOKE, "smoke_done", source="zeros", p50=0, p95=0)
            return {"peak_memory_bytes": 0}

    async def _finish(self, passport: dict[str, Any]) -> None:
        params = {"framework": "none", "version": "0", "device": self.made.device, "warnings": []}
        text = Text(code="passport_done", params=params)
        written = self._mark(Step.PASSPORT, Phase.SUCCEEDED, text)
        self.made = replace(written, phase=Phase.SUCCEEDED, passport=passport)
        await self._store.save_preparation(self.made)


class WeightlessReplica(InProcessReplica):
    """Serves once the gate lets it."""

    def __init__(self, spec: ReplicaSpec, journal: list[str], machine: Machine) -> None:
        super().__init__(spec, journal)
        self._machine = machine
        machine.serving.append(self)
        machine.used[spec.gpu] += 1

    async def ready(self) -> None:
        await self._machine.pass_gate()
        await asyncio.sleep(0)
        if self.spec.model["file_name"] == Model.UNSERVABLE:
            raise EngineError("onnx_invalid", permanent=True)

    def crash(self, reason: str = "signal 9") -> None:
        if not self.end.done():
            self._machine.serving.remove(self)
            self._machine.used[self.spec.gpu] -= 1
        super().crash(reason)


class WeightlessEngine(InProcessEngine):
    """Starts replicas that need no process, and ends them with itself."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    async def start(self, spec: ReplicaSpec) -> Replica:
        replica = WeightlessReplica(spec, self.journal, self._machine)
        self.replicas.append(replica)
        return replica

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.stop()


class WeightlessSpecs:
    """Describes replicas without files or environments."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def make(self, made: Deployment, version: int, run_id: str, ordinal: int) -> ReplicaSpec:
        run = self._store.runs.get(run_id)
        if run is None:
            raise EngineError("run_gone", permanent=True)
        device = self._store.preparation(run_id).device
        model = {"file_name": run.file_name, "digest": run.digest}
        spec = await spec_for(made, version, run_id, ordinal)
        return replace(spec, gpu="" if device == "cpu" else device, model=model)


class WeightlessService:
    """The service on a folder, in this process; several lives one after the other."""

    def __init__(self, folder: Path, machine: Machine, **settings: Any) -> None:
        self.machine = machine
        self.url = ""
        self._lives = 0
        self._folder = folder
        self._settings = settings
        self._runner: web.AppRunner | None = None
        self._patches = contextlib.ExitStack()

    @property
    def app(self) -> web.Application:
        """The application of this life."""
        assert self._runner is not None
        return self._runner.app

    @property
    def store(self) -> Store:
        """Everything that the service keeps."""
        return self.app[keys.STORE]

    async def __aenter__(self) -> Self:
        self._patches.enter_context(_doubles(self.machine))
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._runner is not None:
            await self.stop()
        self._patches.close()

    @property
    def _data_dir(self) -> Path:
        return self._folder / str(self._lives)

    async def start(self) -> None:
        """Begin a life on the folder as it is."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        settings = Settings(
            data_dir=self._data_dir,
            prepare_concurrency=_PREPARATIONS_AT_ONCE,
            **_QUOTAS,
            **self._settings,
        )
        self._runner = make_runner(create_app(settings), shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0])

    async def stop(self) -> None:
        """End this life as SIGTERM does."""
        assert self._runner is not None
        await self._runner.cleanup()
        self._runner = None
        assert not self.machine.serving

    async def restart(self) -> None:
        """End this life in order, and begin the next one."""
        await self.stop()
        await self.start()

    async def cut(self) -> None:
        """Begin the next life on what the disk holds at this moment, as after kill -9."""
        before = self._data_dir
        self._lives += 1
        after = self._data_dir
        # Threads that have begun something end it; nothing new begins, as this blocks the loop.
        while True:
            found = _listing(before)
            with contextlib.suppress(shutil.Error):
                shutil.copytree(before, after, ignore=shutil.ignore_patterns(*_LEFT_OUT))
                if found == _listing(before):
                    break
            shutil.rmtree(after)
        # As another process would see it: whatever was committed, and nothing else.
        with (
            contextlib.closing(sqlite3.connect(before / "persephone.db")) as left,
            contextlib.closing(sqlite3.connect(after / "persephone.db")) as kept,
        ):
            left.backup(kept)
        await self.stop()
        shutil.rmtree(before)
        await self.start()


def _listing(folder: Path) -> dict[Path, int]:
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.lstat().st_mtime_ns
    return found


@contextlib.contextmanager
def _doubles(machine: Machine) -> Iterator[None]:
    """Let the product take its doubles for what would start processes or take time."""
    probe = app.probe

    async def probe_once(*arguments: Any) -> Sandbox:
        if not _PROBED:
            _PROBED.append(await probe(*arguments))
        return _PROBED[0]

    attempt = type("Attempt", (WeightlessAttempt,), {"machine": machine})
    with (
        mock.patch.multiple(
            "server.app",
            Inventory=lambda *_: WeightlessInventory(machine),
            Devices=partial(Devices, clock=machine.clock),
            LocalEngine=lambda *_, **__: WeightlessEngine(machine),
            SpecMaker=lambda _settings, store, *_: WeightlessSpecs(store),
            build_tree=lambda root, _kind: root,
            sweep_trees=lambda *_: None,
            end_orphans=lambda *_: None,
        ),
        mock.patch.object(app, "probe", probe_once),
        mock.patch("server.pipeline.prepare.Attempt", attempt),
        mock.patch("server.pipeline.devices._EMPTY_PAUSE_SECONDS", 0.001),
        mock.patch("server.reconcile.backoff.FIRST_SECONDS", 0.001),
        driven_clock(machine),
    ):
        yield


@contextlib.contextmanager
def driven_clock(machine: Machine) -> Iterator[None]:
    """Let everything that the service writes down be of the machine's time."""

    def now(*before: datetime | None) -> datetime:
        at = real() + timedelta(seconds=machine.ahead_seconds)
        return max((at, *(moment for moment in before if moment is not None)))

    real = records.now
    with contextlib.ExitStack() as kept:
        for name, module in list(sys.modules.items()):
            if name.startswith("server.") and getattr(module, "now", None) is real:
                kept.enter_context(mock.patch.object(module, "now", now))
        yield
