"""Predictions with a token against predictions that are open to everybody.

Two services with the same model: in one a deployment's own address and the gateway check every
request's token. The open one is sent the same header too, so that reading it does not count.
"""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING, Any

import orjson
from common import Caller, linear, median_ratio, run, say, scratch, service, table, verdict

from benchmarks.serving.loads import Body, Load, load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROUNDS = 7
SECONDS = 3
CONNECTIONS = 8
TENSOR: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
CONTENT = orjson.dumps({"inputs": [TENSOR]})
JSON = {"Content-Type": "application/json"}
SIDES = ("open", "open, header sent", "token")
PLACES = ("own address", "gateway")

Side = tuple[str, Body, int]


async def sides_of(caller: Caller, pid: int, *, is_open: bool) -> dict[tuple[str, str], Side]:
    """Ship the model and return what is asked, by place and side."""
    run_id, status = await caller.ship(linear(), "prod")
    wish = {"name": "benchmark", "scope": "inference", "runId": run_id}
    token = (await caller.post("/tokens", json=wish))["token"]
    with_token = Body(CONTENT, {**JSON, "Authorization": f"Bearer {token}"})
    bodies = {"open": Body(CONTENT, JSON), "open, header sent": with_token}
    return {
        (place, side): (f"{status[field]}/v2/models/{run_id}/infer", body, pid)
        for place, field in zip(PLACES, ("endpoint", "gateway"), strict=True)
        for side, body in (bodies if is_open else {"token": with_token}).items()
    }


async def measure(sides: dict[tuple[str, str], Side], folder: Path) -> None:
    """Load all sides in turns and print what came of it."""
    found: dict[tuple[str, str], list[Load]] = {key: [] for key in sides}
    for number in range(ROUNDS):
        for key, (url, body, pid) in list(sides.items())[:: 1 if number % 2 else -1]:
            one = await load(url, body, pid, folder, connections=CONNECTIONS, seconds=SECONDS)
            if one.errors:
                raise SystemExit(f"{key}: {one.errors} errors")
            found[key].append(one)

    def of(key: tuple[str, str], name: str) -> Sequence[float]:
        return [getattr(one, name) for one in found[key]]

    names = ("rps", "p50_ms", "p99_ms", "cpu_us")
    keys = [(place, side) for place in PLACES for side in SIDES]
    rows = [(*key, *(statistics.median(of(key, name)) for name in names)) for key in keys]
    table(("place", "side", "requests/s", "p50 ms", "p99 ms", "CPU µs/request"), rows)
    say()
    for place in PLACES:
        for other in SIDES[:2]:
            ratio = median_ratio(of((place, "token"), "cpu_us"), of((place, other), "cpu_us"))
            verdict(f"{place}, CPU: token / {other}", ratio, "<= 1.10", met=ratio <= 1.10)


async def main() -> None:
    async with contextlib.AsyncExitStack() as kept:
        folder = kept.enter_context(scratch())
        sides = {}
        for mode in ("open", "token"):
            own = folder / mode
            own.mkdir()
            settings = {"PERSEPHONE_INFERENCE_AUTH": mode}
            started, caller = await kept.enter_async_context(service(own, **settings))
            sides |= await sides_of(caller, started.pid, is_open=mode == "open")
        await measure(sides, folder)


if __name__ == "__main__":
    run(main)
