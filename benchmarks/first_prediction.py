"""Seconds from the first byte of an upload to the first prediction of the deployed model.

Warm caches: the model environment is built and the same kind of model was shipped before. Beside
it a bare program of the same environment that loads the model and predicts once.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from typing import TYPE_CHECKING

from common import (
    Caller,
    ModelEnvironments,
    linear,
    output_of,
    run,
    say,
    scratch,
    service,
    table,
    verdict,
)

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 7
STAGES = ("upload", "prepare", "deploy", "predict")
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}
EXPECTED = [6.25, 2.75]

PLAIN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(session.run(None, {"x": numpy.array([[1, 2, 3, 4]], numpy.float32)})[0].tolist())
"""


async def shipped(caller: Caller, content: bytes) -> list[float]:
    """Ship a model and predict once; return the seconds of each stage."""
    marks = [time.perf_counter()]
    run_id = await caller.upload(content)
    marks.append(time.perf_counter())
    prepared = await caller.prepare(run_id, "cpu")
    assert prepared["phase"] == "Succeeded", prepared
    marks.append(time.perf_counter())
    deployed = await caller.deploy(run_id, "dev")
    assert deployed["phase"] == "Succeeded", deployed
    marks.append(time.perf_counter())
    url = f"{deployed['endpoint']}/v2/models/{run_id}/infer"
    body = await caller.post(url, json={"inputs": [TENSOR]})
    assert body["outputs"][0]["data"] == EXPECTED, body
    marks.append(time.perf_counter())
    await caller.call("DELETE", f"/runs/{run_id}")
    return [after - before for before, after in itertools.pairwise(marks)]


async def plain(python: Path, model: Path) -> float:
    """Load the model in a fresh process of its environment and predict once."""
    began = time.perf_counter()
    text = await output_of(python, "-I", "-c", PLAIN, model)
    assert text.strip() == str([EXPECTED]), text
    return time.perf_counter() - began


async def main() -> None:
    with scratch() as folder:
        model = folder / "model.onnx"
        model.write_bytes(linear())
        # Built by the first program that needs it, which may mean a download.
        python = await asyncio.to_thread(ModelEnvironments().python, "onnx")
        async with service(folder) as (_, caller):
            await shipped(caller, linear())
            ours, theirs = [], []
            for _ in range(ROUNDS):
                ours.append(await shipped(caller, linear()))
                theirs.append(await plain(python, model))
    totals = [sum(stages) for stages in ours]
    rows = [
        (stage, statistics.median(times), min(times), max(times))
        for stage, times in zip(STAGES, zip(*ours, strict=True), strict=True)
    ]
    rows.append(("upload -> first prediction", statistics.median(totals), min(totals), max(totals)))
    rows.append(("bare program", statistics.median(theirs), min(theirs), max(theirs)))
    table(("stage", "seconds (median)", "least", "most"), rows)
    say()
    middle = statistics.median(totals)
    verdict("first prediction / 2 s", middle / 2, "<= 1.00", met=middle <= 2)
    factor = statistics.median(a / b for a, b in zip(totals, theirs, strict=True))
    verdict("first prediction / bare program", factor, "none; three such processes are started")


if __name__ == "__main__":
    run(main)
