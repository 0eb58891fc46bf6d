"""Predictions through the gateway against a plain aiohttp handler, and a large body through it.

The handler is aiohttp + uvloop + orjson: it parses the same body and answers the same JSON itself,
with no model and no hop behind it. The large body is a binary tensor of 32 MiB.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import orjson
from common import (
    MIB,
    forget_peak,
    linear,
    median_ratio,
    memory_mib,
    program,
    run,
    say,
    scratch,
    service,
    table,
    verdict,
)

from benchmarks.serving.loads import HEADER_LENGTH, Body, Load, load

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 5
SECONDS = 3
CONNECTIONS = (16, 64)
LARGE_BYTES = 32 * MIB
LARGE_TIMES = 5
TENSOR: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
BODY = Body(orjson.dumps({"inputs": [TENSOR]}), {"Content-Type": "application/json"})

HANDLER = """
import asyncio, sys, orjson, uvloop
from aiohttp import web
answer = orjson.loads(sys.argv[1])

async def infer(request):
    asked = orjson.loads(await request.read())
    assert asked["inputs"]
    return web.Response(body=orjson.dumps(answer), content_type="application/json")

async def main():
    app = web.Application()
    app.router.add_post("/infer", infer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print("http://127.0.0.1:%d" % runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()

uvloop.run(main())
"""

SIDES = ("gateway", "plain aiohttp handler")


async def measure(gateway: str, handler: str, pids: tuple[int, int], folder: Path) -> None:
    """Load both sides in turns and print what came of it."""
    found: dict[tuple[str, int], list[Load]] = {}
    for number in range(ROUNDS):
        sides = list(zip(SIDES, (gateway, handler), pids, strict=True))
        for connections in CONNECTIONS:
            for name, url, pid in sides if number % 2 else sides[::-1]:
                one = await load(url, BODY, pid, folder, connections=connections, seconds=SECONDS)
                if one.errors:
                    raise SystemExit(f"{name}: {one.errors} errors")
                found.setdefault((name, connections), []).append(one)
    names = ("rps", "p50_ms", "p99_ms", "cpu_us")
    rows = [
        (name, count, *(statistics.median(getattr(one, key) for one in loads) for key in names))
        for (name, count), loads in found.items()
    ]
    table(("side", "connections", "requests/s", "p50 ms", "p99 ms", "CPU µs/request"), sorted(rows))
    say("\nThe gateway's CPU is that of the service and its replica.\n")
    for connections in CONNECTIONS:
        ours, theirs = ([one.rps for one in found[name, connections]] for name in SIDES)
        ratio = median_ratio(ours, theirs)
        name = f"gateway / plain handler, {connections} connections"
        verdict(name, ratio, ">= 0.40", met=ratio >= 0.4)


def large_body() -> Body:
    rows = LARGE_BYTES // 16
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [rows, 4],
        "parameters": {"binary_data_size": LARGE_BYTES},
    }
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    head = orjson.dumps({"inputs": [tensor], "outputs": outputs})
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Body(head + np.ones(LARGE_BYTES // 4, np.float32).tobytes(), headers)


async def send_large(url: str, pid: int) -> None:
    """Send the large body several times and print how long it took and what the service kept."""
    body = large_body()
    before = memory_mib(pid, "VmRSS")
    forget_peak(pid)
    seconds = []
    async with aiohttp.ClientSession() as session:
        for _ in range(LARGE_TIMES):
            began = time.perf_counter()
            async with session.post(url, data=body.content, headers=dict(body.headers)) as answer:
                came = await answer.read()
                assert answer.status == 200, came[:500]
                assert len(came) > LARGE_BYTES // 2, len(came)
            seconds.append(time.perf_counter() - began)
    peak, after = memory_mib(pid, "VmHWM") - before, memory_mib(pid, "VmRSS") - before
    say(
        f"\n{LARGE_TIMES} bodies of 32 MiB, 16 MiB back each: median "
        f"{statistics.median(seconds):.2f} s; the service's memory peaked {peak:.1f} MiB above the "
        f"{before:.1f} MiB before and stayed {after:.1f} MiB above them\n"
    )
    verdict("growth of the service's memory / the body", peak / 32, "none; 1 would be all of it")


async def main() -> None:
    with scratch() as folder:
        async with service(folder) as (started, caller):
            run_id, _ = await caller.ship(linear(), "prod")
            url = f"{started.url}/prod/v2/models/{run_id}/infer"
            answer = await caller.post(url, data=BODY.content, headers=dict(BODY.headers))
            text = orjson.dumps(answer).decode()
            async with program(sys.executable, "-c", HANDLER, text) as (pid, address):
                await measure(url, f"{address}/infer", (started.pid, pid), folder)
            await send_large(url, started.pid)


if __name__ == "__main__":
    run(main)
