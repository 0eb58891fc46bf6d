"""A service that can be made to fail at a point or at a call, its client, and its judge."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import aiohttp

from tests.support.fake_nvml.world import Card, World
from tests.support.faults.history import Client, RefusedError
from tests.support.faults.judge import Judge, integrity_of
from tests.support.faults.plan import Plan
from tests.support.faults.starter import VARIABLE
from tests.support.faulty_machine.machine import FaultyMachine
from tests.support.onnx_files import shifted
from tests.support.processes import processes_of
from tests.support.service import Caller, Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

    Act = Callable[[], Awaitable[None]]

BIG = Card(uuid="GPU-b1600000-0000-4000-8000-000000000001")
SMALL = Card(
    uuid="GPU-5a110000-0000-4000-8000-000000000002", name="Tesla T4", total=15_360, used=300
)
_DEATH_SECONDS = 60.0
_ORPHAN_SECONDS = 5.0


@dataclass
class Times:
    """How long it took, in seconds, from the restart on."""

    api: list[float] = field(default_factory=list)
    deployments: list[float] = field(default_factory=list)

    def row(self) -> str:
        """The medians and the longest, for people."""
        shown = []
        for name, found in (("API", self.api), ("deployments", self.deployments)):
            ordered = sorted(found) or [0.0]
            middle = ordered[len(ordered) // 2]
            shown.append(
                f"{name} back after {middle:.2f} s (median), {ordered[-1]:.2f} s (longest)"
            )
        return "; ".join(shown)


class Stage:
    """One data folder and all that happens to it, over many faults.

    A deployment in ``prod``, the *resident*, is up from the beginning to the end.
    """

    def __init__(
        self,
        folder: Path,
        environments: ModelEnvironments,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = folder / "data"
        own = self.data_dir / "environments"
        own.mkdir(parents=True)
        # Not there yet where these tests are the first ones on a machine.
        packages = environments.folder / ".uv"
        packages.mkdir(exist_ok=True)
        (own / ".uv").symlink_to(packages)
        self.world = World.create(folder / "nvml", BIG, SMALL)
        self.machine = FaultyMachine(folder / "machine", self.data_dir)
        self.plan = Plan(folder / "plan.json")
        self.times = Times()
        self.deaths = 0
        self._number = 0
        self.service = Service(
            self.data_dir,
            {
                **self.world.environment,
                **self.machine.environment,
                VARIABLE: str(folder / "plan.json"),
                "PERSEPHONE_ALLOW_CPU_FALLBACK": "true",
                "PERSEPHONE_DRAIN_SECONDS": "0.1",
                "PERSEPHONE_MAX_RUNS_PER_HOUR": "100000",
                **(settings or {}),
            },
            module="tests.support.faults.starter",
        )
        self.client: Client
        self.judge: Judge
        self.resident = ""

    async def __aenter__(self) -> Self:
        await self.service.start()
        self.client = Client(Caller(self.service.url))
        self.client.cards = frozenset({BIG.uuid, SMALL.uuid})
        self.judge = Judge(self.client, self.data_dir)
        self.client.probe = await self.client.upload(shifted(-1), -1)
        self.resident = await self.prepared()
        await self.client.deploy(self.resident, "prod")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.plan.disarm()
        self.machine.heal()
        await self.client.caller.http.close()
        if self.service.runs:
            await self.service.kill()
        self.machine.close()

    def fresh_value(self) -> float:
        """A number that no model answers yet."""
        self._number += 1
        return float(self._number)

    async def uploaded(self, model: str | None = None) -> str:
        """Upload a model of its own."""
        value = self.fresh_value()
        return await self.client.upload(shifted(value), value, model)

    async def prepared(self, gpu: str = "cpu", model: str | None = None) -> str:
        """Upload and prepare a model."""
        run_id = await self.uploaded(model)
        body = await self.client.prepare(run_id, gpu)
        assert body["phase"] == "Succeeded", body
        return run_id

    async def deployed(self, gpu: str = "cpu", model: str | None = None) -> str:
        """Upload, prepare and deploy a model."""
        run_id = await self.prepared(gpu, model)
        body = await self.client.deploy(run_id)
        assert body["phase"] == "Succeeded", body
        return run_id

    async def until_death(self, act: Act, after: float) -> bool:
        """Act until the service dies of what is armed, ``after`` so many seconds yet; whether it did.

        It is launched first where it does not run.
        """
        await self.launched()
        acting = asyncio.ensure_future(quietly(act))
        dying = asyncio.ensure_future(self.service.ended())
        try:
            async with asyncio.timeout(_DEATH_SECONDS):
                await asyncio.wait({acting, dying}, return_when=asyncio.FIRST_COMPLETED)
                if not dying.done():
                    # What goes on after the last answer belongs to it.
                    await asyncio.wait({dying}, timeout=after)
            return dying.done() and dying.result() != 0
        finally:
            dying.cancel()
            if dying.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(acting), 20)
            acting.cancel()

    async def launched(self) -> None:
        """Launch the service unless it runs."""
        if not self.service.runs:
            await self.service.launch()

    async def after_death(self) -> None:
        """Look for what it left running, start it again and judge."""
        self.deaths += 1
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while orphans := processes_of(self.data_dir):
            if time.monotonic() > deadline:
                self.judge.complain("orphan", [one.argv for one in orphans])
                for one in orphans:
                    one.kill()
                break
            await asyncio.sleep(0.01)
        found = integrity_of(self.data_dir / "persephone.db")
        if found != "ok":
            self.judge.complain("damage", found)
        await self.restart()
        await self.judge.judge()

    async def restart(self) -> None:
        """Start it, and take the times until it answers and until all that was up serves."""
        began = time.monotonic()
        starting = asyncio.ensure_future(self.service.start())
        await self._until(began, self._answers, self.times.api)
        await starting
        await self._until(began, self._serves, self.times.deployments)

    async def _until(
        self, began: float, reached: Callable[[], Awaitable[bool]], times: list[float]
    ) -> None:
        while not await reached():
            if time.monotonic() - began > _DEATH_SECONDS:
                self.judge.complain("silent", "after the restart")
                return
            await asyncio.sleep(0.01)
        times.append(time.monotonic() - began)

    async def _answers(self) -> bool:
        try:
            status, _ = await self.client.caller.call("GET", "/healthz")
        except (aiohttp.ClientError, OSError):
            return False
        return status == 200

    async def _serves(self) -> bool:
        status, body = await self.client.caller.call(
            "GET", f"/deploy/status?runId={self.resident}&env=prod"
        )
        return status == 200 and body["phase"] == "Succeeded"

    async def clear(self) -> None:
        """Take away every run that a way has made."""
        kept = {self.resident, self.client.probe}
        for run_id, told in list(self.client.runs.items()):
            if run_id not in kept:
                if told.deleted != "told":
                    await self.client.delete(run_id)
                del self.client.runs[run_id]


async def quietly(act: Act) -> None:
    """Act as a client does whom a service may leave at any time."""
    with contextlib.suppress(aiohttp.ClientError, OSError, RefusedError):
        await act()
