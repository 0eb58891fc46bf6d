"""Upload of 500 MiB: the service, a program that copies, hashes and fsyncs, FastAPI's UploadFile.

All sides read the same file from the page cache, write it to the same disk, hash it with SHA-256
and fsync it. The service also sniffs it, keeps a row of it and syncs its folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from common import (
    MIB,
    cookie_of,
    cpu_seconds,
    fastapi_python,
    forget_peak,
    linear,
    median_ratio,
    memory_mib,
    output_of,
    program,
    run,
    say,
    scratch,
    service,
    table,
    varint,
    verdict,
)

if TYPE_CHECKING:
    from common import Caller, Service

ROUNDS = 5
SIZE = 500 * MIB
BLOCK = MIB

FASTAPI = """
import hashlib, os, sys, socket, uvicorn
from fastapi import FastAPI, UploadFile
app = FastAPI()
target = sys.argv[1]

@app.post("/upload")
def upload(file: UploadFile):
    digest = hashlib.sha256()
    with open(target, "wb", buffering=0) as out:
        while block := file.file.read(1048576):
            digest.update(block)
            out.write(block)
        os.fsync(out.fileno())
    return {"sha256": digest.hexdigest()}

listener = socket.create_server(("127.0.0.1", 0))
print("http://127.0.0.1:%d" % listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False,
    log_level="error")).run(sockets=[listener])
"""


def write_model(path: Path) -> str:
    """Write a file that begins as a model does and is random then; return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        left = SIZE
        # One long field behind a small graph, as a model with its training state has it.
        block = linear() + varint(20 << 3 | 2) + varint(SIZE)
        while left:
            block = block[:left]
            digest.update(block)
            file.write(block)
            left -= len(block)
            block = os.urandom(BLOCK)
        os.fsync(file.fileno())
    return digest.hexdigest()


def copy(source: Path, target: Path) -> None:
    """The program to compare with; prints its seconds and the digest."""
    digest = hashlib.sha256()
    began = time.perf_counter()
    with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as out:
        while block := file.read(BLOCK):
            digest.update(block)
            out.write(block)
        os.fsync(out.fileno())
    say(json.dumps([time.perf_counter() - began, digest.hexdigest()]))


async def copied(source: Path, folder: Path) -> tuple[float, str]:
    target = folder / "copy"
    os.sync()
    text = await output_of(sys.executable, __file__, "copy", source, target)
    target.unlink()
    seconds, digest = json.loads(text)
    return seconds, digest


async def sent(url: str, source: Path, cookie: str = "") -> tuple[float, dict]:
    """Upload with curl; return its seconds and the answer."""
    os.sync()
    command = ["curl", "-sS", "--fail-with-body", "-F", f"file=@{source}", "-w", "\n%{time_total}"]
    if cookie:
        command += ["-b", cookie]
    body, seconds = (await output_of(*command, f"{url}/upload")).rsplit("\n", 1)
    return float(seconds), json.loads(body)


class Growth:
    """How far the service's memory rises above what it had before its first upload."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = memory_mib(pid, "VmRSS")
        forget_peak(pid)

    @property
    def mib(self) -> float:
        return memory_mib(self._pid, "VmHWM") - self.before


async def measure(
    folder: Path, source: Path, digest: str, started: Service, caller: Caller, other: str
) -> None:
    # A small one first, so that the session and the tables are there.
    await caller.upload(linear())
    growth = Growth(started.pid)
    cookie = cookie_of(caller)
    took: dict[str, list[float]] = {"copy": [], "service": [], "FastAPI": []}
    cpu = cpu_seconds(started.pid)
    for number in range(ROUNDS):
        seconds, found = await copied(source, folder)
        assert found == digest
        took["copy"].append(seconds)
        seconds, answer = await sent(started.url, source, cookie)
        assert answer["sha256"] == digest
        took["service"].append(seconds)
        if not number:
            first = growth.mib
        await caller.call("DELETE", f"/runs/{answer['runId']}")
        if other:
            seconds, answer = await sent(other, source)
            assert answer["sha256"] == digest
            took["FastAPI"].append(seconds)
            (folder / "fastapi").unlink()
    cpu = (cpu_seconds(started.pid) - cpu) / ROUNDS
    polls = await polled_meanwhile(started.url, source, cookie, caller)
    report(took)
    say(f"\nserver CPU of one upload: {cpu:.2f} s")
    say(
        f"server memory: {growth.before:.1f} MiB before; peak +{first:.1f} MiB at the first "
        f"upload, +{growth.mib:.1f} MiB over all"
    )
    say(
        f"polls during an upload: median {statistics.median(polls):.1f} ms, "
        f"longest {max(polls):.1f} ms of {len(polls)}\n"
    )
    ratio = median_ratio(took["copy"], took["service"])
    verdict("upload / (copy + sha256 + fsync), throughput", ratio, ">= 0.60", met=ratio >= 0.6)
    if other:
        ratio = median_ratio(took["FastAPI"], took["service"])
        verdict("upload / FastAPI UploadFile, throughput", ratio, ">= 1.50", met=ratio >= 1.5)
    else:
        say("FastAPI could not be installed: not compared")
    verdict("growth of memory / 32 MiB", growth.mib / 32, "<= 1.00", met=growth.mib <= 32)


async def polled_meanwhile(url: str, source: Path, cookie: str, caller: Caller) -> list[float]:
    """Poll as forty pages do while one more file arrives; return the polls' milliseconds."""
    run_id = await caller.upload(linear())
    uploading = asyncio.create_task(sent(url, source, cookie))
    took = []
    while not uploading.done():
        began = time.perf_counter()
        await caller.get(f"/prepare/status?runId={run_id}")
        took.append(1e3 * (time.perf_counter() - began))
        await asyncio.sleep(0.05)
    _, answer = await uploading
    await caller.call("DELETE", f"/runs/{answer['runId']}")
    return took


def report(took: dict[str, list[float]]) -> None:
    rows = [
        (name, statistics.median(times), min(times), max(times), 500 / statistics.median(times))
        for name, times in took.items()
        if times
    ]
    table(("side", "seconds (median)", "least", "most", "MiB/s"), rows)


async def main() -> None:
    with scratch() as folder:
        source = folder / "model.onnx"
        digest = write_model(source)
        python = fastapi_python(folder)
        async with service(folder) as (started, caller):
            if python is None:
                await measure(folder, source, digest, started, caller, "")
                return
            async with program(python, "-c", FASTAPI, folder / "fastapi", TMPDIR=str(folder)) as (
                _,
                url,
            ):
                await measure(folder, source, digest, started, caller, url)


if __name__ == "__main__":
    if sys.argv[1:2] == ["copy"]:
        copy(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        run(main)
