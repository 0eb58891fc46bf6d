"""Predictions that come together run in one call of the model, through the whole service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.onnx_files import shifted
from tests.support.service import running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = pytest.mark.e2e

CLIENTS = 16
REQUESTS = 50


def asking(value: float) -> dict[str, Any]:
    row = [value, value + 0.5]
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": row}]}


async def test_what_comes_together_runs_together_and_everybody_gets_the_own_answer(
    environments: ModelEnvironments, tmp_path: Path
) -> None:
    await asyncio.to_thread(environments.python, "onnx")
    async with running(environments.lend(tmp_path / "data")) as (_service, caller):
        run_id, deployed = await caller.ship(shifted(10))
        url = f"{deployed['endpoint']}/v2/models/{run_id}"

        async def client(number: int) -> None:
            async with aiohttp.ClientSession() as session:
                for count in range(REQUESTS):
                    value = number * 1000.0 + count
                    async with session.post(f"{url}/infer", json=asking(value)) as answer:
                        body = await answer.json()
                    assert answer.status == 200, body
                    assert body["outputs"][0]["data"] == [value + 10, value + 10.5]

        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        stats = (await caller.get(f"{deployed['gateway']}/v2/models/{run_id}/stats"))["model_stats"]

    assert stats[0]["inference_count"] == CLIENTS * REQUESTS
    assert stats[0]["execution_count"] < CLIENTS * REQUESTS
    assert max(entry["batch_size"] for entry in stats[0]["batch_stats"]) > 1
