"""Memory of four replicas of one large model, beside four processes that load its file plainly.

What the machine spends is the proportional set size: a page that several processes map counts once
among them.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import numpy as np
from common import (
    MIB,
    ModelEnvironments,
    program,
    run,
    say,
    scratch,
    service,
    table,
    verdict,
)

from benchmarks.serving.processes import memory_mib
from tests.support.onnx_files import (
    FLOAT,
    bytes_field,
    model,
    node,
    number_field,
    tensor_type,
    value,
)
from tests.support.processes import replicas_of

if TYPE_CHECKING:
    from pathlib import Path

REPLICAS = 4
WIDTH = 7168

PLAIN = """
import sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": numpy.ones((1, int(sys.argv[2])), numpy.float32)})
print("ready", flush=True)
time.sleep(600)
"""


def large_model() -> bytes:
    """One matrix of 196 MiB."""
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32)
    matrix = (
        b"".join(number_field(1, WIDTH) for _ in range(2))
        + number_field(2, FLOAT)
        + bytes_field(8, "w")
        + bytes_field(9, weights.tobytes())
    )
    return model(
        [node("MatMul", ["x", "w"], ["y"])],
        [value("x", tensor_type(FLOAT, ["batch", WIDTH]))],
        [value("y", tensor_type(FLOAT, ["batch", WIDTH]))],
        initializers=[matrix],
    )


async def replicas(folder: Path, content: bytes) -> tuple[float, float, float]:
    """Return RSS and PSS of all replicas in MiB, and the seconds until they served."""
    async with service(folder) as (server, caller):
        run_id = await caller.upload(content)
        prepared = await caller.prepare(run_id)
        assert prepared["phase"] == "Succeeded", prepared
        began = time.perf_counter()
        deployed = await caller.deploy(run_id, replicas=REPLICAS)
        assert deployed["phase"] == "Succeeded", deployed
        seconds = time.perf_counter() - began
        return (*memory_of([one.pid for one in replicas_of(server.data_dir)]), seconds)


async def processes(folder: Path, content: bytes) -> tuple[float, float, float]:
    """Return the same of as many processes that load the file."""
    path = folder / "model.onnx"
    path.write_bytes(content)
    python = await asyncio.to_thread(ModelEnvironments().python, "onnx")
    began = time.perf_counter()
    async with AsyncExitStack() as stack:
        started = await asyncio.gather(
            *(
                stack.enter_async_context(program(python, "-c", PLAIN, path, str(WIDTH)))
                for _ in range(REPLICAS)
            )
        )
        seconds = time.perf_counter() - began
        return (*memory_of([pid for pid, _ in started]), seconds)


def memory_of(pids: list[int]) -> tuple[float, float]:
    assert len(pids) == REPLICAS, pids
    found = [memory_mib(pid) for pid in pids]
    return sum(one[0] for one in found), sum(one[1] for one in found)


async def main() -> None:
    content = large_model()
    with scratch() as folder:
        ours = await replicas(folder, content)
        theirs = await processes(folder, content)
    say(f"model of {len(content) / MIB:.0f} MiB, {REPLICAS} processes\n")
    rows = [("replicas", *ours), ("processes that load the file", *theirs)]
    table(("side", "RSS, MiB", "PSS, MiB", "seconds until all serve"), rows)
    say()
    ratio = ours[1] / theirs[1]
    verdict("PSS of the replicas / of the processes", ratio, "<= 0.60", met=ratio <= 0.6)


if __name__ == "__main__":
    run(main)
