"""What the sandbox costs: a replica's start and its predictions, beside the same process without any.

Every side is the same model server with the same model; the bare one is started by its interpreter
alone, with no limits, no Landlock, no seccomp, no namespaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from common import ModelEnvironments, linear, run, say, scratch, table, verdict

from server.environments.trees import build_tree
from server.sandbox.child import LINE_BYTES, Child
from server.sandbox.levels import Level
from server.sandbox.model_process import ModelProcess, launch_of
from server.sandbox.probe import probe
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.sandbox.launch import Launch, Sandbox

STARTS = 21
ROUNDS = 60
REQUESTS = 200
BARE = "bare"
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()


@dataclass(frozen=True, kw_only=True)
class Place:
    """What every side is started from."""

    folder: Path
    python: Path
    tree: Path
    model: Path


class Replica:
    """One model server with sockets of its own; ``sandbox`` None starts it bare."""

    def __init__(self, place: Place, name: str, sandbox: Sandbox | None) -> None:
        self._place = place
        self._sandbox = sandbox
        self._folder = place.folder / name
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._request = (
            b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
        )

    def _launch(self, shared: socket.socket, control: socket.socket) -> Launch:
        spec = {
            "run_id": "m",
            "names": ["m"],
            "kind": "onnx",
            "path": str(self._place.model),
            "digest": "0" * 64,
        }
        (self._folder / "spec.json").write_text(json.dumps(spec))
        return launch_of(
            ModelProcess(
                command="serve",
                python=self._place.python,
                environment=self._place.python.parents[1],
                tree=self._place.tree,
                folder=self._place.model.parent,
                spec=self._folder / "spec.json",
                memory_bytes=8 << 30,
                listen_fd=shared.fileno(),
                control_fd=control.fileno(),
            )
        )

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[float]:
        """Run it; yields the seconds from its start until the model was loaded."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / "control"
        path.unlink(missing_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as shared, socket.socket(1) as control:
            control.bind(str(path))
            control.listen()
            launch = self._launch(shared, control)
            began = time.perf_counter()
            child = await (_bare(launch) if self._sandbox is None else self._sandbox.start(launch))
            connector = aiohttp.UnixConnector(str(path))
            async with aiohttp.ClientSession(connector=connector) as orders:
                try:
                    while not (await _ask(orders, "GET", "/state")).get("loaded"):
                        await asyncio.sleep(0.001)
                    seconds = time.perf_counter() - began
                    await _ask(orders, "POST", "/accept")
                    self._connection = await asyncio.open_connection(*shared.getsockname())
                    yield seconds
                finally:
                    await child.kill()

    async def predict(self, times: int) -> float:
        """Predict one after the other; return the median in milliseconds."""
        assert self._connection is not None
        reader, writer = self._connection
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            taken.append(time.perf_counter() - began)
        return 1000 * statistics.median(taken)


async def _ask(orders: aiohttp.ClientSession, method: str, path: str) -> dict[str, Any]:
    async with orders.request(method, f"http://replica{path}") as answer:
        said: dict[str, Any] = await answer.json(content_type=None)
        return said


async def _bare(launch: Launch) -> Child:
    assert launch.python is not None
    process = await asyncio.create_subprocess_exec(
        *(launch.python, "-P", "-m", "server.model_server", *launch.arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**launch.env, "PYTHONPATH": str(launch.tree)},
        pass_fds=tuple(launch.pass_fds),
        start_new_session=True,
        limit=LINE_BYTES,
    )
    return Child(process)


async def sandboxes(data_dir: Path, tree: Path) -> dict[str, Sandbox | None]:
    """Return the sides: bare, and every level above 1 that this machine has."""
    found: dict[str, Sandbox | None] = {BARE: None}
    for level in (Level.NAMESPACES, Level.KERNEL):
        sandbox = await probe(Settings(data_dir=data_dir), tree, level)
        if sandbox.level is level:
            found[f"level {level.value}"] = sandbox
        else:
            say(f"level {level.value} is left out: {'; '.join(sandbox.problems)}")
    return found


def _beyond_bare(taken: dict[str, list[float]]) -> list[tuple[str, float]]:
    """Return for each side the median over the rounds of what it took more than the bare one."""
    return [
        (name, statistics.median(one - bare for one, bare in zip(own, taken[BARE], strict=True)))
        for name, own in taken.items()
        if name != BARE
    ]


async def measure_starts(replicas: dict[str, Replica]) -> None:
    taken: dict[str, list[float]] = {name: [] for name in replicas}
    for turn in range(STARTS + 1):
        for name, replica in replicas.items():
            async with replica.started() as seconds:
                # The first round fills the page cache.
                if turn:
                    taken[name].append(1000 * seconds)
    rows = [(name, statistics.median(all_), min(all_), max(all_)) for name, all_ in taken.items()]
    table(("start to a loaded model, ms", "median", "least", "most"), rows)
    say()
    for name, more in _beyond_bare(taken):
        verdict(f"start at {name} - bare, ms", more, "<= 50", met=more <= 50)
    say()


async def measure_predictions(replicas: dict[str, Replica]) -> None:
    taken: dict[str, list[float]] = {name: [] for name in replicas}
    async with contextlib.AsyncExitStack() as stack:
        for replica in replicas.values():
            await stack.enter_async_context(replica.started())
        for replica in replicas.values():
            await replica.predict(REQUESTS)
        for _ in range(ROUNDS):
            for name, replica in replicas.items():
                taken[name].append(await replica.predict(REQUESTS))
    rows = [(name, statistics.median(all_), min(all_), max(all_)) for name, all_ in taken.items()]
    table((f"p50 of {REQUESTS} predictions, ms", "median", "least", "most"), rows)
    say()
    for name, more in _beyond_bare(taken):
        verdict(f"prediction at {name} - bare, ms", more, "<= 0.20", met=more <= 0.2)


async def main() -> None:
    with scratch() as folder:
        python = await asyncio.to_thread(ModelEnvironments().python, "onnx")
        model = folder / "model" / "model.onnx"
        model.parent.mkdir()
        model.write_bytes(linear())
        tree = build_tree(folder / "trees", "model_server")
        place = Place(folder=folder, python=python, tree=tree, model=model)
        sides = await sandboxes(folder, tree)
        replicas = {
            name: Replica(place, name.replace(" ", "-"), sandbox) for name, sandbox in sides.items()
        }
        say(f"user {os.geteuid()}, {STARTS} starts and {ROUNDS} rounds each, in turns\n")
        await measure_starts(replicas)
        await measure_predictions(replicas)


if __name__ == "__main__":
    run(main)
