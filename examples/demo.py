"""Ships a real model through a service of its own and watches it: upload, prepare, deploy, predict.

Run by ``make demo``. Every tenth request is wrong on purpose, so that the figures have errors
of the caller (4xx) to leave out; the last column is this program's own count.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp

EXAMPLES = Path(__file__).parent
MODEL = EXAMPLES / "wine.onnx"
ROWS = EXAMPLES / "wine_rows.json"
SECONDS = 20
PER_SECOND = 25


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def start_service(folder: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start the service on a free port and return it with its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server",
        env={**os.environ, "PERSEPHONE_PORT": "0", "PERSEPHONE_DATA_DIR": folder},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    address = ""
    while line := (await process.stdout.readline()).decode():
        sys.stdout.write(line)
        if "is ready on" in line:
            address = line.rsplit(" ", 1)[1].strip()
        if line.startswith("  data"):
            break
    if not address:
        raise SystemExit("the service did not start; its message stands above")
    return process, address


async def call(session: aiohttp.ClientSession, method: str, url: str, **more: object) -> dict:
    async with session.request(method, url, **more) as answer:
        body = await answer.json()
        if answer.status >= 400:
            raise SystemExit(f"{method} {url}: {answer.status} {body['message']}")
        return body


async def ship(session: aiohttp.ClientSession, api: str) -> tuple[str, str]:
    """Upload, prepare and deploy the model; return the run's id and its own address."""
    say(f"\n$ curl -F file=@{MODEL.name} {api}/upload")
    with MODEL.open("rb") as file:
        run = await call(session, "POST", f"{api}/upload", data={"file": file})
    run_id = run["runId"]
    say(json.dumps(run))

    say(f"\n$ curl -X POST '{api}/prepare/start?runId={run_id[:8]}…&gpuId=cpu'")
    await call(session, "POST", f"{api}/prepare/start?runId={run_id}&gpuId=cpu")
    shown: set[str] = set()
    while True:
        status = await call(session, "GET", f"{api}/prepare/status?runId={run_id}")
        for step in status["steps"]:
            if step["status"] in {"Succeeded", "Failed"} and step["name"] not in shown:
                shown.add(step["name"])
                say(f"  {step['status']:<10} {step['name']:<12} {step['message']}")
        if status["phase"] in {"Succeeded", "Failed"}:
            break
        await asyncio.sleep(0.1)
    if status["phase"] == "Failed":
        raise SystemExit(1)

    say(f"\n$ curl -X POST '{api}/deploy/start?runId={run_id[:8]}…&env=prod'")
    deployed = await call(session, "POST", f"{api}/deploy/start?runId={run_id}&env=prod")
    while deployed["phase"] == "Running":
        await asyncio.sleep(0.1)
        deployed = await call(session, "GET", f"{api}/deploy/status?runId={run_id}&env=prod")
    say(f"  {deployed['phase']:<10} {deployed['message']} {deployed.get('endpoint', '')}")
    if deployed["phase"] == "Failed":
        raise SystemExit(1)
    return run_id, deployed["endpoint"]


async def send(session: aiohttp.ClientSession, url: str, counts: Counter[str]) -> None:
    """Send predictions at an even pace, every tenth of them wrong."""
    rows = json.loads(ROWS.read_text())["rows"]
    began = time.monotonic()
    for number in range(SECONDS * PER_SECOND):
        await asyncio.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
        row = rows[number % len(rows)]
        values, wrong = row["values"], number % 10 == 9
        tensor = {
            "name": "input",
            "datatype": "FP32",
            "shape": [1, len(values)],
            "data": values[1:] if wrong else values,
        }
        async with session.post(url, json={"inputs": [tensor]}) as answer:
            body = await answer.json()
        counts[f"{answer.status // 100}xx"] += 1
        if number < 3 or number == 9:
            said = body.get("message") or f"class {body['outputs'][0]['data'][0]}"
            say(f"  {answer.status} {said}" + ("" if wrong else f" (truly {row['label']})"))


async def watch(
    session: aiohttp.ClientSession, api: str, run_id: str, counts: Counter[str]
) -> None:
    """Print the monitoring summary beside our own count."""
    await asyncio.sleep(2)
    say("\n  rps/min  errors%  p95 ms  availability%   sent: 2xx  4xx  5xx")
    while True:
        await asyncio.sleep(3)
        shown = await call(session, "GET", f"{api}/monitor/summary?runId={run_id}")
        red, slo = shown["red"], shown["slo"]
        say(
            f"  {60 * red['rps']:7.0f}  {red['errorsPercent']:7.2f}  {red['p95DurationMs']:6.2f}"
            f"  {slo['availability']:13.2f}"
            f"  {counts['2xx']:10d} {counts['4xx']:4d} {counts['5xx']:4d}"
        )


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="persephone-demo-") as folder:
        process, api = await start_service(folder)
        try:
            async with aiohttp.ClientSession(
                cookie_jar=aiohttp.CookieJar(unsafe=True),
                headers={"Accept-Language": os.environ.get("DEMO_LANGUAGE", "en")},
            ) as session:
                run_id, endpoint = await ship(session, api)
                url = f"{endpoint}/v2/models/{run_id}/infer"
                say(f"\n$ curl -d @request.json {endpoint}/v2/models/{run_id[:8]}…/infer")
                counts: Counter[str] = Counter()
                watching = asyncio.create_task(watch(session, api, run_id, counts))
                await send(session, url, counts)
                await asyncio.sleep(4)
                watching.cancel()
                say(f"\nsent {sum(counts.values())} requests in {SECONDS} s: {dict(counts)}")
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()


if __name__ == "__main__":
    asyncio.run(main())
