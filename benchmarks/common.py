"""What the benchmarks share: a service with default logs, figures of processes, tables."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.environments import ModelEnvironments  # noqa: E402
from tests.support.onnx_files import linear, varint  # noqa: E402
from tests.support.service import Caller, Service  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

__all__ = ["Caller", "ModelEnvironments", "Service", "linear", "varint"]

PAGE_ORIGIN = "http://localhost:3000"
MIB = 1024 * 1024
_TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder beside the checkout's caches: the same disk for everybody, and never a tmpfs."""
    parent = ROOT / ".cache"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=parent) as folder:
        yield Path(folder)


@contextlib.asynccontextmanager
async def service(folder: Path, **settings: str) -> AsyncIterator[tuple[Service, Caller]]:
    """The real service with its own defaults, and a session with it."""
    data = ModelEnvironments().lend(folder / "data")
    chosen = {"PERSEPHONE_LOG_LEVEL": "info", **settings}
    async with Service(data, chosen) as started, Caller(started.url) as caller:
        yield started, caller


def cookie_of(caller: Caller) -> str:
    """Return the caller's Cookie header, for programs that are not aiohttp."""
    return "; ".join(f"{morsel.key}={morsel.value}" for morsel in caller.http.cookie_jar)


# ── other programs


@contextlib.asynccontextmanager
async def program(*command: str | Path, **environment: str) -> AsyncIterator[tuple[int, str]]:
    """Start a server that prints its address as its first line; yield its pid and that line."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
        if not line:
            raise SystemExit(f"{command[1]} did not start")
        yield process.pid, line
    finally:
        process.terminate()
        await process.wait()


async def output_of(*command: str | Path) -> str:
    """Run a program to its end and return what it printed; a failure ends the benchmark."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {(out + errors).decode()[-1000:]}")
    return out.decode()


def fastapi_python(folder: Path) -> Path | None:
    """Make a throw-away environment with FastAPI; ``None`` where it cannot be installed."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    packages = (
        "fastapi",
        "uvicorn",
        "uvloop",
        "httptools",
        "python-multipart",
        "prometheus-client",
    )
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages],
        capture_output=True,
        check=False,
    )
    return python if done.returncode == 0 else None


# ── figures of a process


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used by now, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mib(pid: int, field: str) -> float:
    """Return ``VmRSS`` or ``VmHWM`` (the peak) of a process in MiB."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def forget_peak(pid: int) -> None:
    """Let the peak of a process' memory start again at what it has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


# ── load


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What wrk measured: requests a second, latencies in ms, CPU of the server per request in µs."""

    rps: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


async def wrk(
    url: str, pid: int, *, seconds: int = 4, connections: int = 64, headers: Sequence[str] = ()
) -> Load:
    """Load one address with wrk; any answer that is not 2xx ends the benchmark."""
    more = [part for header in headers for part in ("-H", header)]
    before = cpu_seconds(pid)
    text = await output_of(
        "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *more, url
    )
    used = cpu_seconds(pid) - before
    for trouble in ("Non-2xx", "Socket errors"):
        if trouble in text:
            raise SystemExit(f"{url}: {text}")
    requests = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert requests is not None
    assert rate is not None
    return Load(
        rps=float(rate[1]),
        p50_ms=_latency(text, "50%"),
        p99_ms=_latency(text, "99%"),
        cpu_us=1e6 * used / max(1, int(requests[1])),
    )


def _latency(text: str, quantile: str) -> float:
    match = re.search(rf"{quantile}\s+([\d.]+)(us|ms|s)", text)
    assert match is not None
    return float(match[1]) * _UNITS[match[2]]


# ── output


def say(text: str = "") -> None:
    print(text, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows of text and numbers, in Markdown."""
    say("| " + " | ".join(head) + " |")
    say("|" + "---|" * len(head))
    for row in rows:
        say("| " + " | ".join(_cell(cell) for cell in row) + " |")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over the rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def verdict(name: str, ratio: float, target: str, *, met: bool | None = None) -> None:
    """Print the line that a benchmark is read for."""
    word = "" if met is None else (", met" if met else ", MISSED")
    say(f"RATIO {name}: {ratio:.2f} (target {target}{word})")


def run(main: Any) -> None:
    """Run a benchmark; a program that is missing is named."""
    say(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, aiohttp {aiohttp.__version__}")
    try:
        asyncio.run(main())
    except FileNotFoundError as error:
        raise SystemExit(f"not found: {error.filename}") from None
