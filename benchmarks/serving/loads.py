"""Requests of each kind, and wrk sending one of them again and again."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from numpy import array, float32, frombuffer, int32

from benchmarks.serving.processes import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCRIPT = Path(__file__).with_name("request.lua")
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model, what it is asked, and what onnxruntime answers to that."""

    name: str
    path: Path
    input: str
    datatype: str
    row: list[Any]
    outputs: list[str]
    expected: list[float]

    @classmethod
    def of(cls, name: str, folder: Path, described: Mapping[str, Any]) -> Model:
        datatype = {"small": "FP32", "larger": "INT32"}[name]
        given = {key: described[key] for key in ("input", "row", "outputs", "expected")}
        return cls(name=name, path=folder / f"{name}.onnx", datatype=datatype, **given)

    @property
    def mib(self) -> float:
        return self.path.stat().st_size / 2**20


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body and headers."""

    content: bytes
    headers: Mapping[str, str]


def body_of(model: Model, form: str) -> Body:
    """Make the request that a server understands: ``oip``, ``binary``, or a peer's own JSON."""
    json_type = {"Content-Type": "application/json"}
    if form == "rows":
        return Body(json.dumps({"inputs": [model.row]}).encode(), json_type)
    tensor: dict[str, Any] = {
        "name": model.input,
        "datatype": model.datatype,
        "shape": [1, len(model.row)],
    }
    if form == "oip":
        return Body(json.dumps({"inputs": [{**tensor, "data": model.row}]}).encode(), json_type)
    data = array(model.row, float32 if model.datatype == "FP32" else int32).tobytes()
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in model.outputs]
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Body(head + data, headers)


def is_right(model: Model, status: int, headers: Mapping[str, str], answer: bytes) -> bool:
    """Whether an answer carries what onnxruntime says; the last output is looked at."""
    expected = model.expected
    if status != 200:
        return False
    if HEADER_LENGTH in headers:
        found = frombuffer(answer[-4 * len(expected) :], float32).tolist()
    else:
        found = list(_numbers(json.loads(answer)))[-len(expected) :]
    return len(found) == len(expected) and all(
        abs(one - other) < 1e-4 for one, other in zip(found, expected, strict=True)
    )


def _numbers(value: Any) -> Iterator[float]:
    """Yield the numbers of an answer's tensors, in whichever form they are."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in {"shape", "parameters", "id"}:
                yield from _numbers(item)


async def ask(url: str, body: Body, seconds: float = 10) -> tuple[int, Mapping[str, str], bytes]:
    """Send one request on a connection of its own."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(url, data=body.content, headers=dict(body.headers)) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one run of wrk found; latencies in ms, processor time of the server per request in µs."""

    rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: int
    cpu_us: float


async def load(
    url: str, body: Body, pid: int, folder: Path, *, connections: int, seconds: int
) -> Load:
    """Load an address with one thread; ``pid`` is the root of the server's processes."""
    (folder / "body").write_bytes(body.content)
    lines = (f"{name}: {value}\n" for name, value in body.headers.items())
    (folder / "headers").write_text("".join(lines))
    before = cpu_seconds(pid)
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"),
        *("-s", str(SCRIPT), url),
        env={**os.environ, "REQUEST": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text = (await process.communicate())[0].decode()
    used = cpu_seconds(pid) - before
    result = next((line for line in text.splitlines() if line.startswith("RESULT ")), None)
    if process.returncode != 0 or result is None:
        raise SystemExit(f"wrk failed after {time.perf_counter() - began:.0f} s: {text[-500:]}")
    requests, micros, errors, p50, p95, p99, _ = map(float, result.split()[1:])
    return Load(
        rps=(requests - errors) * 1e6 / micros,
        p50_ms=p50 / 1e3,
        p95_ms=p95 / 1e3,
        p99_ms=p99 / 1e3,
        errors=int(errors),
        cpu_us=1e6 * used / max(1.0, requests),
    )
