"""The service under a real Prometheus that runs on the repository's own configuration."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import prometheus_server
from tests.support.processes import replicas_of
from tests.support.service import ROOT, Caller, Service, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

MODEL = ROOT / "examples" / "wine.onnx"
# A short one is sooner full of scrapes.
WINDOW = "&window=30s"
REQUEST = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 13], "data": [1.0] * 13}]}


def configuration(folder: Path, url: str) -> Path:
    """The repository's prometheus.yml, on the port that the test's service got."""
    text = (ROOT / "prometheus.yml").read_text()
    assert text.count("127.0.0.1:8000") == 2
    config = folder / "prometheus.yml"
    config.write_text(text.replace("127.0.0.1:8000", url.removeprefix("http://")))
    return config


async def summary(caller: Caller, run_id: str, more: str = "") -> tuple[str, Any]:
    async with caller.http.get(f"{caller.url}/monitor/summary?runId={run_id}{more}") as answer:
        assert answer.status == 200
        return answer.headers["X-Metrics-Source"], await answer.json()


async def predict(caller: Caller, endpoint: str, run_id: str, number: int) -> None:
    for _ in range(number):
        status, body = await caller.call(
            "POST", f"{endpoint}/v2/models/{run_id}/infer", json=REQUEST
        )
        assert status == 200, body


async def traffic(caller: Caller, endpoint: str, run_id: str) -> None:
    """Some ten predictions a second, every tenth of them a mistake."""
    number = 0
    while True:
        body = REQUEST if number % 10 else {"inputs": []}
        await caller.call("POST", f"{endpoint}/v2/models/{run_id}/infer", json=body)
        number += 1
        await asyncio.sleep(0.08)


async def until_source(caller: Caller, run_id: str, wanted: str, seconds: float) -> Any:
    """Wait until a source answers, with figures of what is sent."""
    async with asyncio.timeout(seconds):
        while True:
            source, shown = await summary(caller, run_id, WINDOW)
            if source == wanted and shown["red"]["rps"] > 0:
                return shown
            await asyncio.sleep(0.5)


async def test_figures_come_from_prometheus_while_it_answers(
    data_dir: Path, tmp_path: Path
) -> None:
    """It is found by HTTP first, dies, and comes back with the list of replicas from the file."""
    service = Service(data_dir)
    async with service:
        url = service.url
    config, port = configuration(tmp_path, url), prometheus_server.free_port()
    settings = {
        "PERSEPHONE_PROMETHEUS_URL": f"http://127.0.0.1:{port}",
        "PERSEPHONE_PORT": url.rsplit(":", 1)[1],
    }
    async with running(data_dir, settings) as (_, caller), AsyncExitStack() as stack:
        run_id, deployed = await caller.ship(MODEL.read_bytes())
        sending = asyncio.create_task(traffic(caller, deployed["endpoint"], run_id))
        stack.callback(sending.cancel)
        with prometheus_server.running(config, tmp_path / "tsdb", port) as prometheus:
            shown = await until_source(caller, run_id, "prometheus", 90)
            assert shown["dataStatus"] == "ok"
            assert shown["slo"]["availability"] == 100
            assert shown["red"]["errorsPercent"] == 0
            targets = (await caller.get(f"{prometheus}/api/v1/targets"))["data"]["activeTargets"]
            assert {target["health"] for target in targets} == {"up"}
            assert {target["labels"]["job"] for target in targets} == {
                "persephone",
                "persephone-models",
            }
            ready = await caller.get("/readyz")
            assert ready["monitoring"] == {"source": "prometheus", "prometheusUp": True}
            await explanations_hold(caller, prometheus, run_id)
            series = await caller.get(f"/monitor/series?runId={run_id}&window=2m&step=5s")
            assert series["points"][-1]["rps"] > 0
            assert series["points"][-1]["p99Ms"] > 0
            last = await until_source(caller, run_id, "prometheus", 10)
        died = time.time()
        while time.time() - died < 20:
            source, shown = await summary(caller, run_id, WINDOW)
            assert source == "prometheus"
            assert shown["updatedAt"] >= last["updatedAt"]
            assert age(shown) >= time.time() - died - 3
            await asyncio.sleep(1)
        shown = await until_source(caller, run_id, "embedded", 30)
        assert age(shown) < 5
        assert shown["red"]["rps"] == pytest.approx(last["red"]["rps"], rel=0.5)
        config.write_text(from_file(config.read_text(), data_dir / "targets.json"))
        with prometheus_server.running(config, tmp_path / "tsdb", port):
            shown = await until_source(caller, run_id, "prometheus", 90)
            assert age(shown) < 5


def age(shown: Any) -> float:
    return time.time() - datetime.fromisoformat(shown["updatedAt"]).timestamp()


def from_file(config: str, targets: Path) -> str:
    """The same configuration, with the list of replicas from the file."""
    head, _, tail = config.partition("    http_sd_configs:\n")
    assert tail.count("\n") == 2
    return f"{head}    file_sd_configs:\n      - files: [{targets}]\n"


async def explanations_hold(caller: Caller, prometheus: str, run_id: str) -> None:
    """Every figure that is shown is what Prometheus itself says to the PromQL that explains it.

    It found the replica some seconds after the service: those seconds are missing from the windows
    of the objectives, so that the service tells these itself.
    """
    shown = await caller.get(f"/monitor/summary?runId={run_id}&explain=true{WINDOW}")
    assert shown["explain"].keys() == figures_of(shown)
    for figure, explained in shown["explain"].items():
        assert explained["samples"] > 0
        query = {"query": explained["promql"], "time": explained["at"]}
        answer = await caller.get(f"{prometheus}/api/v1/query", params=query)
        [result] = answer["data"]["result"]
        value, told = float(result["value"][1]), found(shown, figure)
        if explained["source"] == "prometheus":
            assert value == pytest.approx(told, rel=1e-6, abs=1e-9), figure
        else:
            assert figure.startswith("objectives."), figure
        if figure.endswith("attainedPercent"):
            assert value == pytest.approx(told, abs=5), figure


def figures_of(shown: Any) -> set[str]:
    """The places of all figures of a summary."""
    parts = ("red", "slo", "errorsByFault")
    places = {f"{part}.{name}" for part in parts for name in shown[part]}
    [standing] = shown["objectives"]
    for kind in ("availability", "latency"):
        level = f"objectives.{standing['environment']}.{kind}"
        told = {"attainedPercent", "budgetLeftPercent", "exhaustedInSeconds"}
        places |= {f"{level}.{name}" for name in told & standing[kind].keys()}
        places |= {f"{level}.burnRates.{name}" for name in standing[kind]["burnRates"]}
    return places


def found(shown: Any, figure: str) -> Any:
    """The figure at a place of the summary; environments stand in a list."""
    place, *rest = figure.split(".")
    if place == "objectives":
        [standing] = shown["objectives"]
        assert standing["environment"] == rest.pop(0)
        value = standing
    else:
        value = shown[place]
    for name in rest:
        value = value[name]
    return value


async def test_a_dead_prometheus_hides_no_figures(data_dir: Path) -> None:
    settings = {"PERSEPHONE_PROMETHEUS_URL": f"http://127.0.0.1:{prometheus_server.free_port()}"}
    async with running(data_dir, settings) as (_, caller):
        run_id, deployed = await caller.ship(MODEL.read_bytes())
        await predict(caller, deployed["endpoint"], run_id, 20)
        async with asyncio.timeout(20):
            source, shown = await summary(caller, run_id)
            while shown["red"]["rps"] == 0:
                await asyncio.sleep(0.5)
                source, shown = await summary(caller, run_id)
        assert source == "embedded"
        assert shown["dataStatus"] == "ok"
        assert (await caller.get("/readyz"))["status"] == "ready"


def requests_of(shown: Any) -> int:
    [standing] = shown["objectives"]
    assert standing["basis"] == "requests"
    return int(standing["count"])


async def test_a_kill_takes_no_more_history_than_one_interval(data_dir: Path) -> None:
    async with running(data_dir, {"PERSEPHONE_PROBE_SECONDS": "0"}) as (service, caller):
        run_id, deployed = await caller.ship(MODEL.read_bytes())
        path = f"/monitor/summary?runId={run_id}"
        # Of 123 none is the 95th percentile exactly, so that no rounding chooses another one.
        for _ in range(3):
            await predict(caller, deployed["endpoint"], run_id, 41)
            await asyncio.sleep(2)
        await caller.until(path, lambda shown: requests_of(shown) >= 123)
        # The history is kept every five seconds.
        await asyncio.sleep(6)
        before = await caller.get(path)
        await service.kill()
        await service.start()
        after = await caller.get(f"{path}&explain=true")
        # None is lost. An increase is extrapolated to the end of its window, as Prometheus does: by
        # less than 1.1 of the mean pause between its scrapes.
        scrapes = after["explain"]["objectives.dev.availability.attainedPercent"]["samples"]
        assert 123 <= requests_of(after) <= round(123 * (1 + 1.1 / (scrapes - 1)))
        assert after["slo"]["latencyP95Ms"] == pytest.approx(
            before["slo"]["latencyP95Ms"], rel=0.05
        )
        endpoint = (await caller.deploy(run_id))["endpoint"]
        await predict(caller, endpoint, run_id, 80)
        await caller.until(path, lambda shown: requests_of(shown) >= 200)


async def test_an_idle_deployment_is_probed_and_a_dead_one_is_seen_without_users(
    data_dir: Path,
) -> None:
    settings = {"PERSEPHONE_PROBE_SECONDS": "1"}
    async with running(data_dir, settings) as (_, caller):
        run_id, _ = await caller.ship(MODEL.read_bytes())
        path = f"/monitor/summary?runId={run_id}"

        def judged(shown: Any, count: int) -> bool:
            [standing] = shown["objectives"]
            return standing["basis"] == "probes" and standing["count"] >= count

        shown = await caller.until(path, lambda shown: judged(shown, 3), 30)
        assert shown["slo"]["availability"] == 100
        # Nobody predicted anything: probes are no requests.
        assert shown["red"] == {"rps": 0, "errorsPercent": 0, "p95DurationMs": 0}
        assert shown["dataStatus"] == "no_traffic"
        for process in replicas_of(data_dir):
            os.kill(process.pid, signal.SIGSTOP)
        shown = await caller.until(path, lambda shown: shown["slo"]["availability"] < 100, 60)
        [standing] = shown["objectives"]
        assert standing["availability"]["burnRates"]["5m"] > 0
        # Nobody knows whether it is idle, so it is not called that.
        shown = await caller.until(path, lambda shown: shown["unreachable"], 60)
        assert shown["dataStatus"] == "stale"
        assert shown["unreachable"] == [{"environment": "dev", "replica": "0", "version": "1"}]
        for process in replicas_of(data_dir):
            os.kill(process.pid, signal.SIGCONT)
