"""prometheus.yml and everything exposed for it, under Debian's real Prometheus and promtool."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from metrics import rollouts
from metrics.client import PrometheusClient
from metrics.embedded import EmbeddedMonitor
from metrics.instruments import CONTENT_TYPE, InferenceInstruments
from metrics.reading import Question
from metrics.service import ServiceInstruments
from metrics.slo import summarise
from metrics.targets import Target, discovery, sanitise
from tests.support import prometheus_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.e2e

CONFIG = Path(__file__).resolve().parents[2] / "prometheus.yml"
RPS = 40
WINDOW = Question(seconds=30, quantiles=(0.95,), health=True)


def test_the_shipped_configuration_is_valid() -> None:
    checked = prometheus_server.promtool("check", "config", str(CONFIG))

    assert checked.returncode == 0, checked.stdout + checked.stderr


def used_replica() -> str:
    instruments = InferenceInstruments(
        None, framework="onnx", framework_version="1.20.1", digest="ab12", started_at=1.7e9
    )
    instruments.observe("2xx", 0.01)
    return instruments.text()


def used_gateway() -> str:
    instruments = InferenceInstruments(None, probes=True)
    instruments.observe("5xx", 0.0, overloaded=True)
    instruments.probe(passed=True)
    return instruments.text() + rollouts.exposition(restarts=1, failed=True)


def used_service() -> str:
    service = ServiceInstruments(
        CollectorRegistry(), routes=("/upload",), environments=("dev",), steps=("load",)
    )
    service.request("/upload", "POST", 201, 0.5)
    return service.text().decode()


@pytest.mark.parametrize(
    "exposed",
    [used_replica, lambda: sanitise(used_replica()), used_gateway, used_service],
    ids=["replica", "cleaned", "gateway", "service"],
)
def test_promtool_finds_nothing_to_complain_about(exposed: Callable[[], str]) -> None:
    checked = subprocess.run(
        [prometheus_server.binary("promtool"), "check", "metrics"],
        input=exposed(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


class Deployment:
    """A stand-in for the service: two replicas, one of them dead, and itself."""

    def __init__(self) -> None:
        self.alive = target("0")
        self.dead = target("1")
        self.instruments = InferenceInstruments(None, framework="onnx")
        self.service = ServiceInstruments(CollectorRegistry(), routes=("/metrics",))
        self.embedded = EmbeddedMonitor()
        self.observed = 0

    def text_of(self, replica: Target) -> str | None:
        return self.instruments.text() if replica == self.alive else None

    async def serve_traffic(self) -> None:
        """A steady stream of requests, every tenth of which fails."""
        begun = time.monotonic()
        while True:
            await asyncio.sleep(0.05)
            while self.observed < (time.monotonic() - begun) * RPS:
                self.observed += 1
                code = "5xx" if self.observed % 10 == 0 else "2xx"
                seconds = 0.01 + 0.001 * (self.observed % 20)
                self.instruments.observe(code, seconds, overloaded=self.observed % 20 == 0)

    async def scrape(self) -> None:
        while True:
            for replica in (self.alive, self.dead):
                self.embedded.ingest(replica, time.time(), self.text_of(replica))
            await asyncio.sleep(2)

    @contextlib.asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/sd", self._sd)
        app.router.add_get("/sd/replicas/{id}/metrics", self._replica)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        tasks = [asyncio.create_task(self.serve_traffic()), asyncio.create_task(self.scrape())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = await asyncio.to_thread(self.service.text)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _sd(self, request: web.Request) -> web.Response:
        return web.json_response(discovery([self.alive, self.dead], request.host))

    async def _replica(self, request: web.Request) -> web.Response:
        for replica in (self.alive, self.dead):
            text = self.text_of(replica)
            if replica.id == request.match_info["id"] and text is not None:
                return web.Response(text=sanitise(text), headers={"Content-Type": CONTENT_TYPE})
        return web.Response(status=503)


def target(replica: str) -> Target:
    return Target(run_id="run1", model="iris", environment="dev", replica=replica, version="1")


async def health(session: aiohttp.ClientSession, url: str) -> dict[str, str]:
    async with session.get(f"{url}/api/v1/targets?state=active") as response:
        found: list[dict[str, Any]] = (await response.json())["data"]["activeTargets"]
    return {
        f"{one['labels']['job']}/{one['labels'].get('replica', '')}": one["health"] for one in found
    }


async def rules_of(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    async with session.get(f"{url}/api/v1/rules") as response:
        groups: list[dict[str, Any]] = (await response.json())["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


async def test_a_live_prometheus_finds_the_replicas_and_agrees_with_the_embedded_monitor(
    tmp_path: Path,
) -> None:
    port = prometheus_server.free_port()
    config = tmp_path / "prometheus.yml"
    text = CONFIG.read_text().replace(":8000", f":{port}")
    config.write_text(text.replace("metrics/rules", str(CONFIG.parent / "metrics" / "rules")))
    deployment = Deployment()
    async with deployment.listening(port), aiohttp.ClientSession() as session:
        with prometheus_server.running(config, tmp_path / "data") as url:
            client = PrometheusClient(session, url)
            assert await client.is_ready()
            assert not (await client.build_info()).prom3

            expected = {
                "persephone/": "up",
                "persephone-models/0": "up",
                "persephone-models/1": "down",
            }
            seen: dict[str, str] = {}
            for _ in range(300):
                seen = await health(session, url)
                if seen == expected:
                    break
                await asyncio.sleep(0.2)
            assert seen == expected

            # The window has to be full of scrapes before the two can agree.
            await asyncio.sleep(36)
            rps, p95 = [], []
            for _ in range(9):
                at = time.time()
                [theirs] = await client.read("run1", [WINDOW], at)
                ours = deployment.embedded.read("run1", WINDOW, at)
                mine, other = summarise(ours, ours), summarise(theirs, theirs)
                assert mine.data_status == other.data_status == "ok"
                rps.append(abs(other.rps / mine.rps - 1))
                p95.append(abs(other.p95_duration_ms / mine.p95_duration_ms - 1))
                await asyncio.sleep(1.1)
            [nobody] = await client.read("run2", [WINDOW], at)
            rules = await rules_of(session, url)

    assert len(rules) > 40
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
    assert nobody.is_empty
    # A burst of other work on the machine may lie between two scrapes: so the middle of several.
    assert median(rps) <= 0.02, rps
    assert median(p95) <= 0.05, p95
    assert mine.rps == pytest.approx(RPS, rel=0.05)
    assert mine.p95_duration_ms == pytest.approx(28, rel=0.06)
    assert other.errors_percent == pytest.approx(mine.errors_percent, abs=1)
    assert other.availability == pytest.approx(mine.availability, abs=1)
    # One of two replicas is dead; a scrape more of one of them may lie in the window.
    assert theirs.up == pytest.approx(0.5, abs=0.03)
    assert ours.up == pytest.approx(0.5, abs=0.03)
