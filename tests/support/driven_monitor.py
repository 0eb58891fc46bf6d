"""One service's monitor, with a clock and a Prometheus that do as they are told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.objectives import Objective
from metrics.targets import Target
from server.pipeline.monitor import Monitor, Shown
from server.pipeline.sources import Sources
from server.records import Deployment, DeploymentKey
from server.states import Wanted

if TYPE_CHECKING:
    from tests.support.queriers import Answers

BEGIN = 1_700_000_000.0
INTERVAL = 2.0


class World:
    """One service's monitor; ``now`` is the time of everything."""

    target = Target(run_id="run0", model="m", environment="prod", replica="0", version="1")

    def __init__(
        self, prometheus: Answers | None, *, runs: int = 1, days: float = 10, patience: float = 60.0
    ) -> None:
        self.now = BEGIN
        self.embedded = EmbeddedMonitor()
        self.wanted = Wanted.UP
        self.deployed = {f"run{number}" for number in range(runs)}
        self.first = datetime.fromtimestamp(BEGIN - days * 86_400, UTC)
        self.objective = Objective(availability=99.0)
        self.monitor = Monitor(
            self,  # type: ignore[arg-type]
            Sources(self.embedded, prometheus, clock=self.clock),
            self,  # type: ignore[arg-type]
            seconds=INTERVAL,
            clock=self.clock,
            steady=self.clock,
            patience=patience,
        )

    def clock(self) -> float:
        return self.now

    def of(self, _run_id: str, _environment: str) -> Objective:
        return self.objective

    def deployments_of(self, run_id: str) -> list[Deployment]:
        if run_id not in self.deployed:
            return []
        made = Deployment(
            key=DeploymentKey("me", run_id, "prod"),
            port=1,
            wanted=self.wanted,
            version=1,
            run_id=run_id,
            wanted_at=self.first,
            first_wanted_at=self.first,
        )
        return [made]

    def scrape(self, run_id: str = "run0", *, requests_per_second: int = 5) -> None:
        """Let the embedded monitor see the last two minutes."""
        target = replace(self.target, run_id=run_id)
        instruments = InferenceInstruments(None)
        for back in range(120, -1, -2):
            self.embedded.ingest(target, self.now - back, instruments.text())
            for _ in range(2 * requests_per_second):
                instruments.observe("2xx", 0.2)

    def watch(self, seconds: float) -> None:
        """Let the embedded monitor have watched the deployment for so long."""
        own = Target(run_id="run0", model="m", environment="prod", replica="gateway", version="1")
        for back in range(round(seconds), -1, -10):
            self.embedded.ingest(own, self.now - back, None)

    async def shown(self, run_id: str = "run0", **more: Any) -> Shown:
        return await self.monitor.summary(run_id, None, **more)

    async def settled(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
