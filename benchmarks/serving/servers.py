"""Starts the servers to be compared, each the same way: until it has given a right answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from benchmarks.serving import processes
from benchmarks.serving.environments import environment
from benchmarks.serving.loads import ask, body_of, is_right

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.common import Caller, Service
    from benchmarks.serving.loads import Model

PROGRAMS = Path(__file__).with_name("peers")
END_SECONDS = 20
_ASK_AGAIN_SECONDS = 0.01


class NotServingError(Exception):
    """Why a server cannot be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers: where, since how many seconds after its start, as which process."""

    url: str
    cold_seconds: float
    pid: int
    """The root of everything that works for it."""
    memory_pids: tuple[int, ...]
    """The roots of what its memory is."""

    def memory_mib(self) -> tuple[float, float, int]:
        found = [processes.memory_mib(pid) for pid in self.memory_pids]
        return sum(one[0] for one in found), sum(one[1] for one in found), sum(o[2] for o in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A program in ``peers``, called with the model's path, a port and the number of workers."""

    name: str
    title: str
    program: str
    form: str = "oip"
    path: str = "/v2/models/model/infer"
    takes_binary: bool = False
    takes_workers: bool = False
    start_seconds: float = 60.0

    @property
    def forms(self) -> tuple[str, ...]:
        return (self.form, "binary") if self.takes_binary else (self.form,)

    @contextlib.asynccontextmanager
    async def serve(self, model: Model, folder: Path, workers: int = 1) -> AsyncIterator[Running]:
        made = environment(self.name)
        if made.failure:
            raise NotServingError(made.failure)
        port = free_port()
        url = f"http://127.0.0.1:{port}{self.path}"
        log = folder / f"{self.name}.log"
        began = time.perf_counter()
        with log.open("wb") as written:
            process = await asyncio.create_subprocess_exec(
                *(made.python, PROGRAMS / self.program, model.path, str(port), str(workers)),
                cwd=folder,
                env=self._variables(made.python, folder),
                stdout=written,
                stderr=written,
                start_new_session=True,
            )
        try:
            await first_answer(url, model, self.form, self.start_seconds, process)
            cold = time.perf_counter() - began
            yield Running(url=url, cold_seconds=cold, pid=process.pid, memory_pids=(process.pid,))
        except NotServingError as error:
            raise NotServingError(f"{error}: {last_line(log)}") from None
        finally:
            await end(process)

    def _variables(self, python: Path, folder: Path) -> dict[str, str]:
        """Return an environment in which neither pip's nor another Python's settings are found."""
        library = sysconfig.get_config_var("LIBDIR")
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            # Triton's own interpreter has to find the library of the one it was installed for.
            "LD_LIBRARY_PATH": library if self.name == "triton" else "",
        }


class Ours:
    """The service with its defaults; the load goes to a deployment's own address."""

    name = "persephone"
    title = "Persephone"
    forms = ("oip", "binary")
    takes_workers = True

    def __init__(self, service: Service, caller: Caller, runs: dict[str, str]) -> None:
        self._service = service
        self._caller = caller
        self._runs = runs

    @classmethod
    async def ship(cls, service: Service, caller: Caller, models: dict[str, Model]) -> Ours:
        """Upload and prepare the models."""
        runs = {}
        for name, model in models.items():
            runs[name] = await caller.upload(model.path.read_bytes(), model.path.name)
            prepared = await caller.prepare(runs[name])
            assert prepared["phase"] == "Succeeded", prepared
        return cls(service, caller, runs)

    @contextlib.asynccontextmanager
    async def serve(self, model: Model, folder: Path, workers: int = 1) -> AsyncIterator[Running]:
        """Deploy to prod, and stop that in the end; a cold start is from the order to an answer."""
        del folder
        run_id = self._runs[model.name]
        query = f"runId={run_id}&env=prod"
        more = f"&replicas={workers}" if workers > 1 else ""
        began = time.perf_counter()
        status, answer = await self._caller.call("POST", f"/deploy/start?{query}{more}")
        if status != 200:
            raise NotServingError(f"{status} {answer.get('message', answer)}")
        try:
            deployed = await self._caller.until(
                f"/deploy/status?{query}", lambda s: s["phase"] != "Running", 120
            )
            if deployed["phase"] != "Succeeded":
                raise NotServingError(deployed["message"])
            url = f"{deployed['endpoint']}/v2/models/{run_id}/infer"
            await first_answer(url, model, "oip", 30)
            cold = time.perf_counter() - began
            replicas = await self._replicas(workers)
            yield Running(
                url=url, cold_seconds=cold, pid=self._service.pid, memory_pids=tuple(replicas)
            )
        finally:
            await self._caller.post(f"/deploy/stop?{query}")
            await self._caller.until(
                f"/deploy/status?{query}", lambda s: s["phase"] not in {"Running", "Succeeded"}, 60
            )

    async def _replicas(self, wanted: int) -> list[int]:
        """Return the roots of the replicas' processes once there are as many as were wanted."""
        found: list[int] = []
        for _ in range(200):
            members = processes.tree(self._service.pid)
            children = [pid for pid in members if parent_of(pid) == self._service.pid]
            found = [pid for pid in children if " serve " in processes.command_of(pid)]
            if len(found) == wanted:
                return found
            await asyncio.sleep(0.05)
        raise NotServingError(f"{len(found)} replicas where {wanted} were asked for")


def parent_of(pid: int) -> int:
    """Return the parent of a process, 0 if that is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def first_answer(
    url: str, model: Model, form: str, seconds: float, process: Any = None
) -> None:
    """Ask until the answer is right.

    Raises:
        NotServingError: it never was.
    """
    body = body_of(model, form)
    deadline = time.perf_counter() + seconds
    found = "no connection"
    while time.perf_counter() < deadline:
        if process is not None and process.returncode is not None:
            raise NotServingError(f"ended with {process.returncode}")
        with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):
            status, headers, answer = await ask(url, body)
            if is_right(model, status, headers, answer):
                return
            found = f"{status} {answer[:200].decode(errors='replace')}"
        await asyncio.sleep(_ASK_AGAIN_SECONDS)
    raise NotServingError(f"no right answer within {seconds:.0f} s ({found})")


async def end(process: Any) -> None:
    """End a program and whatever it started, by their pids."""
    members = processes.tree(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
    # What outlived its parent still belongs to the session that began with the program.
    for pid in members[1:]:
        with contextlib.suppress(OSError):
            if os.getsid(pid) == process.pid or parent_of(pid) == 1:
                os.kill(pid, signal.SIGKILL)


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it wrote nothing"


def raw_calls(python: Path, model: Model, threads: int, seconds: float) -> tuple[float, float]:
    """Run onnxruntime alone; return calls per second and the processor time of one in µs."""
    program = Path(__file__).with_name("raw.py")
    columns = str(len(model.row))
    command = (python, program, model.path, columns, str(threads), str(seconds))
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    rate, micros = map(float, done.stdout.split())
    return rate, micros
