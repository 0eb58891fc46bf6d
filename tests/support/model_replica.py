"""A replica on real sockets in this process, with models that are easy to predict."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp
import numpy as np
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from server.model_server.failures import ModelFailure
from server.model_server.messages import Messages
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec
from server.model_server.serve import Replica
from server.model_server.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

LOCALE = Path(__file__).parents[2] / "server" / "locale"
RUN = "0123456789abcdef" * 2
ROWS = [[1.0, 2.0], [3.0, 4.5]]
RAISES, NO_MEMORY, NOT_A_NUMBER, HANGS, LEAVES = 666.0, 777.0, 13.0, 99.0, 444.0


class Doubler(Runtime):
    """Answers twice its input and, as text, how many rows came; fails on chosen numbers."""

    kind: ClassVar[str] = "double"

    def __init__(self) -> None:
        self.calls = 0
        self.entered = threading.Event()
        self.released = threading.Event()

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        del path, device, threads
        return Loaded(
            signature=Signature(
                (TensorSpec("x", "FP32", (-1, 2)),),
                (TensorSpec("twice", "FP32", (-1, 2)), TensorSpec("rows", "BYTES", (1,))),
            ),
            framework="double",
            framework_version="1.0",
            device="cpu",
        )

    def predict(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        del outputs
        self.calls += 1
        rows = inputs["x"]
        first = float(rows[0, 0]) if len(rows) else 0.0
        if first == RAISES:
            raise ValueError("cannot read /etc/models/secret.bin")
        if first == NO_MEMORY:
            raise MemoryError
        if first == LEAVES:
            raise SystemExit(3)
        if first == HANGS:
            self.entered.set()
            self.released.wait(20)
        twice = rows * 2
        if first == NOT_A_NUMBER:
            twice[0, 0] = np.nan
        return {"twice": twice, "rows": np.array([str(len(rows)).encode()], dtype=object)}


class RefusesToWarmUp(Doubler):
    """Loads, and cannot answer anything."""

    def predict(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        raise RuntimeError("no kernel image is available")


class RefusesToLoad(Doubler):
    """Cannot be loaded at all."""

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        raise ModelFailure("model_load_failed", found="nothing", evidence="one line")


def specification(**changes: Any) -> ModelSpec:
    """Say how a double is to be run; short times."""
    spec = ModelSpec(
        run_id=RUN,
        names=(RUN, "shop"),
        kind="double",
        path="",
        digest="d" * 64,
        version="3",
        predict_seconds=5.0,
        drain_seconds=0.2,
        max_body_bytes=64 * 1024,
    )
    return replace(spec, **changes)


def compiled_messages(folder: Path) -> Messages:
    """Compile the catalogues of the checkout as a generated tree has them."""
    for language in ("ru", "en"):
        target = folder / language / "LC_MESSAGES"
        target.mkdir(parents=True)
        catalogue = Catalog()
        for source in sorted((LOCALE / language / "LC_MESSAGES").glob("*.po")):
            with source.open("rb") as file:
                for message in read_po(file):
                    if message.id:
                        catalogue[message.id] = message
        with (target / "persephone.mo").open("wb") as out:
            write_mo(out, catalogue)
    return Messages(folder)


def listening() -> socket.socket:
    """Open a listening socket as the service does for a deployment."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    return sock


@dataclass(kw_only=True)
class Running:
    """A replica, its model and clients of both its sockets."""

    replica: Replica
    model: Any
    address: str
    port: int
    client: aiohttp.ClientSession
    control: aiohttp.ClientSession
    failures: list[str] = field(default_factory=list)

    async def order(self, path: str, method: str = "POST", **more: Any) -> tuple[int, Any]:
        async with self.control.request(method, f"http://control{path}", **more) as response:
            text = await response.text()
            with suppress(ValueError):
                return response.status, json.loads(text)
            return response.status, text

    async def infer(
        self, rows: Any, *, name: str = RUN, headers: Any = None, **more: Any
    ) -> tuple[int, dict[str, Any]]:
        sent = {"inputs": [tensor(rows)], **more}
        async with self.client.post(
            f"{self.address}/v2/models/{name}/infer", json=sent, headers=headers
        ) as response:
            assert response.content_type == "application/json"
            return response.status, await response.json()

    async def figures(self) -> dict[str, float]:
        """Read the metrics, without the buckets."""
        _status, text = await self.order("/metrics", "GET")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        pairs = (line.rsplit(" ", 1) for line in lines if "_bucket" not in line)
        return {name: float(value) for name, value in pairs}

    async def exchange(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Send bytes on a connection of their own and read until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        if half_close:
            writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()


def tensor(rows: Any) -> dict[str, Any]:
    """Write rows of two numbers as the double's input."""
    return {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}


def head(path: str = f"/v2/models/{RUN}/infer", **headers: str) -> bytes:
    """Write the head of a POST; underscores in the names of headers are dashes."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").replace("_", "-").encode()


async def get(replica: Running, path: str, **options: Any) -> tuple[int, Any]:
    """Read one path of a replica, which always answers JSON."""
    async with replica.client.get(replica.address + path, **options) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


@asynccontextmanager
async def running(
    messages: Messages,
    folder: Path,
    *,
    shared: socket.socket | None = None,
    model: Runtime | None = None,
    grace_seconds: float = 5.0,
    accept: bool = True,
    **changes: Any,
) -> AsyncIterator[Running]:
    """Run a replica; ``shared`` is another one's socket, which stays open afterwards."""
    own = listening() if shared is None else shared.dup()
    port = own.getsockname()[1]
    path = folder / f"control-{own.fileno()}.sock"
    control = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    control.bind(str(path))
    control.listen()
    double = model or Doubler()
    spec = specification(**changes)
    replica = Replica(
        spec,
        load=lambda: (double, double.load("", device="cpu", threads=1)),
        shared=own,
        control=control,
        messages=messages,
        grace_seconds=grace_seconds,
    )
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as orders,
    ):
        try:
            await replica.open()
            if accept:
                replica.accept()
            yield Running(
                replica=replica,
                model=double,
                address=f"http://127.0.0.1:{port}",
                port=port,
                client=client,
                control=orders,
            )
        finally:
            if isinstance(double, Doubler):
                double.released.set()
            await replica.close()
