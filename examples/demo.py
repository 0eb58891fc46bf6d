"""Ships a real model through a service of its own and watches it: upload, prepare, deploy, predict.

Run by ``make demo``. Every tenth request is wrong on purpose: such requests are answered with 4xx,
which the monitor counts as the caller's mistakes and not as errors of the model. Beside the
monitor's figures stands this program's own count of the very same requests.

``DEMO_LANGUAGE=ru`` shows the service's messages in Russian.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

EXAMPLES = Path(__file__).parent
MODEL = EXAMPLES / "wine.onnx"
ROWS = EXAMPLES / "wine_rows.json"
SECONDS = 20
PER_SECOND = 25
WATCH_SECONDS = 2
WINDOW_SECONDS = 60
READY = "is ready on "


@dataclass
class Count:
    """This program's own count of what it sent and what came back."""

    statuses: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    right: int = 0

    def of_class(self, hundreds: int) -> int:
        return sum(status // 100 == hundreds for status in self.statuses)

    @property
    def p95(self) -> float:
        ordered = sorted(self.milliseconds)
        return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else 0.0


def say(text: str = "") -> None:
    print(text, flush=True)


def settings(folder: str) -> dict[str, str]:
    """Defaults on a free port and an empty folder, except for where wheels come from."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PERSEPHONE_") or name.startswith("PERSEPHONE_WHEEL_")
    }
    return {
        **kept,
        "PERSEPHONE_PORT": "0",
        "PERSEPHONE_DATA_DIR": folder,
        "PERSEPHONE_LOG_LEVEL": "warning",
    }


async def start_service(folder: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start the service and return it with its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server"),
        env=settings(folder),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    address = ""
    while line := (await process.stdout.readline()).decode():
        sys.stdout.write(line)
        address = line.partition(READY)[2].strip() or address
        if line.startswith("  data"):
            return process, address
    raise SystemExit("the service did not start; its message stands above")


async def call(session: aiohttp.ClientSession, method: str, url: str, **more: Any) -> Any:
    async with session.request(method, url, **more) as answer:
        body = await answer.json()
        if answer.status >= 400:
            raise SystemExit(f"{method} {url}: {answer.status} {body['message']}")
        return body


async def prepare(session: aiohttp.ClientSession, api: str, run_id: str) -> None:
    """Prepare the run and print each step when it ends."""
    say(f"\n$ curl -b cookies -X POST '{api}/prepare/start?runId={run_id}&gpuId=cpu'")
    await call(session, "POST", f"{api}/prepare/start?runId={run_id}&gpuId=cpu")
    shown: set[str] = set()
    while True:
        status = await call(session, "GET", f"{api}/prepare/status?runId={run_id}")
        for step in status["steps"]:
            if step["status"] in {"Succeeded", "Failed"} and step["name"] not in shown:
                shown.add(step["name"])
                say(f"  {step['status']:<10} {step['name']:<12} {step['message']}")
        if status["phase"] == "Succeeded":
            return
        if status["phase"] == "Failed":
            raise SystemExit(1)
        await asyncio.sleep(0.1)


async def deploy(session: aiohttp.ClientSession, api: str, run_id: str) -> str:
    """Deploy the run and return its own address."""
    say(f"\n$ curl -b cookies -X POST '{api}/deploy/start?runId={run_id}&env=prod'")
    status = await call(session, "POST", f"{api}/deploy/start?runId={run_id}&env=prod")
    while status["phase"] == "Running":
        await asyncio.sleep(0.1)
        status = await call(session, "GET", f"{api}/deploy/status?runId={run_id}&env=prod")
    say(f"  {status['phase']:<10} {status['message']}")
    if status["phase"] != "Succeeded":
        raise SystemExit(1)
    endpoint: str = status["endpoint"]
    return endpoint


def request_of(values: list[float], mistake: int | None) -> dict[str, Any]:
    """Return a request for one wine; ``mistake`` chooses what is wrong with it."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    wrong: list[dict[str, Any]] = [
        {"data": values[1:]},
        {"name": "wine"},
        {"datatype": "INT64"},
        {"data": ["red", *values[1:]]},
    ]
    if mistake is not None:
        tensor |= wrong[mistake % len(wrong)]
    return {"inputs": [tensor]}


async def send(session: aiohttp.ClientSession, url: str, count: Count, began: float) -> None:
    """Send predictions at an even pace, every tenth of them wrong; show the first answers."""
    rows = json.loads(ROWS.read_text())["rows"]
    for number in range(SECONDS * PER_SECOND):
        await asyncio.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
        row = rows[number % len(rows)]
        mistake = number // 10 if number % 10 == 9 else None
        sent = time.perf_counter()
        async with session.post(url, json=request_of(row["values"], mistake)) as answer:
            body = await answer.json()
        took = (time.perf_counter() - sent) * 1000
        count.statuses.append(answer.status)
        if answer.status == 200:
            count.milliseconds.append(took)
            label = body["outputs"][0]["data"][0]
            count.right += label == row["label"]
            said = f"class {label}, truly {row['label']}"
        else:
            said = body["message"]
        if number < 3 or (mistake is not None and mistake < 4):
            say(f"  {answer.status}  {said}")


async def show_figures(
    session: aiohttp.ClientSession, api: str, run_id: str, count: Count, began: float
) -> None:
    """Print the monitoring summary beside our own count."""
    seen = await call(session, "GET", f"{api}/monitor/summary?runId={run_id}")
    red, slo = seen["red"], seen["slo"]
    say(
        f"  {time.monotonic() - began:3.0f} s  {red['rps']:6.2f}  {red['errorsPercent']:8.2f}"
        f"  {red['p95DurationMs']:6.2f}  {slo['availability']:8.2f}"
        f"  {len(count.statuses) / WINDOW_SECONDS:6.2f}  {count.p95:6.2f}"
        f"  {count.of_class(2):4d} ({count.right:d})"
        f"  {count.of_class(4):6d} {count.of_class(5):4d}"
    )


async def watch(
    session: aiohttp.ClientSession, api: str, run_id: str, count: Count, began: float
) -> None:
    """Print the figures every other second, until it is cancelled."""
    await asyncio.sleep(WATCH_SECONDS)
    say(f"\n$ curl -b cookies '{api}/monitor/summary?runId={run_id}'")
    say("          monitor, the last 60 s              own count of the same requests")
    say("  time     rps  errors %  p95 ms  avail. %     rps  p95 ms  200 (right)   4xx  5xx")
    while True:
        await show_figures(session, api, run_id, count, began)
        await asyncio.sleep(WATCH_SECONDS)


async def show(api: str) -> None:
    """Do everything on a service that runs."""
    language = os.environ.get("DEMO_LANGUAGE", "en")
    # A cookie of an address without a name is refused by default.
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(
        cookie_jar=jar, headers={"Accept-Language": language}
    ) as session:
        say(f"\n$ curl -c cookies -F file=@{MODEL.name} {api}/upload")
        with MODEL.open("rb") as file:
            run = await call(session, "POST", f"{api}/upload", data={"file": file})
        say(f"  {json.dumps(run)}")
        run_id = run["runId"]
        await prepare(session, api, run_id)
        url = f"{await deploy(session, api, run_id)}/v2/models/{run_id}/infer"

        say(f"\n$ curl -d @request.json {url}")
        count = Count()
        began = time.monotonic()
        watching = asyncio.create_task(watch(session, api, run_id, count, began))
        await send(session, url, count, began)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await show_figures(session, api, run_id, count, began)
        say(
            f"\n{len(count.statuses)} requests in {SECONDS} s: {count.of_class(2)} answered, "
            f"{count.right} of them with the true class; {count.of_class(4)} refused for the "
            f"mistakes we made; {count.of_class(5)} failed.\n"
            f"A rate over the last {WINDOW_SECONDS} s is {len(count.statuses) / WINDOW_SECONDS:.2f}"
            f" requests a second, as traffic has lasted {SECONDS} s only."
        )


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="persephone-demo-") as folder:
        process, api = await start_service(folder)
        try:
            await show(api)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
