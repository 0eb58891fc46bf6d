"""The service under a real Prometheus that runs on the repository's own configuration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import prometheus_server
from tests.support.service import ROOT, Caller, Service, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

MODEL = ROOT / "examples" / "wine.onnx"
REQUEST = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 13], "data": [1.0] * 13}]}


def configuration(folder: Path, url: str) -> Path:
    """The repository's prometheus.yml, on the port that the test's service got."""
    text = (ROOT / "prometheus.yml").read_text()
    assert text.count("127.0.0.1:8000") == 2
    config = folder / "prometheus.yml"
    config.write_text(text.replace("127.0.0.1:8000", url.removeprefix("http://")))
    return config


async def summary(caller: Caller, run_id: str) -> tuple[str, Any]:
    async with caller.http.get(f"{caller.url}/monitor/summary?runId={run_id}") as answer:
        assert answer.status == 200
        return answer.headers["X-Metrics-Source"], await answer.json()


async def predict(caller: Caller, endpoint: str, run_id: str, number: int) -> None:
    for _ in range(number):
        status, body = await caller.call(
            "POST", f"{endpoint}/v2/models/{run_id}/infer", json=REQUEST
        )
        assert status == 200, body


async def test_figures_come_from_prometheus_while_it_answers(
    data_dir: Path, tmp_path: Path
) -> None:
    service = Service(data_dir)
    async with service:
        url = service.url
    config = configuration(tmp_path, url)
    with prometheus_server.running(config, tmp_path / "tsdb") as prometheus:
        settings = {
            "PERSEPHONE_PROMETHEUS_URL": prometheus,
            "PERSEPHONE_PORT": url.rsplit(":", 1)[1],
        }
        async with running(data_dir, settings) as (_, caller):
            run_id, deployed = await caller.ship(MODEL.read_bytes())
            await predict(caller, deployed["endpoint"], run_id, 50)
            source, shown = await summary(caller, run_id)
            async with asyncio.timeout(60):
                while source != "prometheus" or shown["red"]["rps"] == 0:
                    await predict(caller, deployed["endpoint"], run_id, 10)
                    await asyncio.sleep(1)
                    source, shown = await summary(caller, run_id)
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
