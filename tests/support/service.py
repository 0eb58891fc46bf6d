"""The real service as a child process, and a caller that talks to it as programs do."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from tests.support.wheels import wheel_links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

ROOT = Path(__file__).parents[2]
_READY = re.compile(r"is ready on (http://\S+)")


def without_gpus(folder: Path) -> dict[str, str]:
    """Return variables under which a process finds no GPU, whatever the machine has."""
    hidden = folder / "no-gpus"
    hidden.mkdir()
    (hidden / "libnvidia-ml.so.1").write_bytes(b"no library")
    paths = [str(hidden), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {"LD_LIBRARY_PATH": ":".join(paths)}


class Service:
    """``python -m server`` on a free port and a data folder of its own; or another ``module``."""

    def __init__(
        self,
        data_dir: Path,
        environment: Mapping[str, str] | None = None,
        *,
        module: str = "server",
    ) -> None:
        self.data_dir = data_dir
        self._module = module
        self.url = ""
        self._environment = dict(environment or {})
        self._process: asyncio.subprocess.Process | None = None
        self.log_path = data_dir.with_name(f"{data_dir.name}.log")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> Self:
        """Start it and wait until it listens."""
        await self.launch()
        await self.ready()
        return self

    async def ready(self) -> None:
        """Wait until it listens; AssertionError if it ends before."""
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            while line := (await self._process.stdout.readline()).decode():
                if match := _READY.search(line):
                    self.url = match[1]
                # Its last line, or the last part of its only one where the log is JSON.
                if line.startswith("  data") or " | data " in line:
                    # The same port again after a restart, as an operator would have it.
                    self._environment["PERSEPHONE_PORT"] = self.url.rsplit(":", 1)[1]
                    return
        raise AssertionError(f"the service did not start:\n{self.log()[-3000:]}")

    async def refused(self) -> tuple[int, str]:
        """Start it with something it refuses; return its exit code and what it wrote."""
        self.log_path = self.log_path.with_name(f"{os.getpid()}-{id(self)}.log")
        await self.launch()
        assert self._process is not None
        written, _ = await asyncio.wait_for(self._process.communicate(), 60)
        assert self._process.returncode is not None
        return self._process.returncode, written.decode() + self.log()

    async def launch(self) -> None:
        """Start it and wait for nothing."""
        settings = {
            "PERSEPHONE_PORT": "0",
            "PERSEPHONE_DATA_DIR": str(self.data_dir),
            "PERSEPHONE_WHEEL_LINKS": wheel_links(),
            "PERSEPHONE_LOG_LEVEL": "debug",
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PERSEPHONE_")}
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                self._module,
                env={**clean, "PYTHONPATH": str(ROOT), **settings, **self._environment},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )

    def log(self) -> str:
        """Return what it has logged."""
        return self.log_path.read_text(errors="replace")

    async def ended(self) -> int:
        """Wait until it has ended by itself and return its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> int:
        """Ask it to end and return its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        return await asyncio.wait_for(self._process.wait(), 30)

    async def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_exc: object) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.stop()


class Caller:
    """One session with the service; answers are (status, JSON)."""

    def __init__(self, url: str, language: str = "en") -> None:
        self.url = url
        self.http = aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True), headers={"Accept-Language": language}
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.http.close()

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Send a request; ``path`` may be a whole address."""
        url = path if path.startswith("http") else self.url + path
        async with self.http.request(method, url, **more) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str, **more: Any) -> Any:
        """GET something that has to succeed."""
        status, body = await self.call("GET", path, **more)
        assert status == 200, body
        return body

    async def post(self, path: str, **more: Any) -> Any:
        """POST something that has to succeed."""
        status, body = await self.call("POST", path, **more)
        assert status == 200, body
        return body

    async def upload(self, content: bytes, name: str = "model", model: str | None = None) -> str:
        """Upload an artifact and return its runId."""
        form = aiohttp.FormData()
        if model is not None:
            form.add_field("model", model)
        form.add_field("file", io.BytesIO(content), filename=name)
        body = await self.post("/upload", data=form)
        return str(body["runId"])

    async def prepare(self, run_id: str, gpu: str | None = None, seconds: float = 300) -> Any:
        """Prepare a run and return the status in which it ends."""
        await self.post(f"/prepare/start?runId={run_id}" + (f"&gpuId={gpu}" if gpu else ""))
        return await self.until(
            f"/prepare/status?runId={run_id}", lambda s: s["phase"] != "Running", seconds
        )

    async def deploy(
        self,
        run_id: str,
        environment: str = "dev",
        seconds: float = 60,
        replicas: int | None = None,
    ) -> Any:
        """Deploy a run and return the status in which it ends."""
        asked = "" if replicas is None else f"&replicas={replicas}"
        await self.post(f"/deploy/start?runId={run_id}&env={environment}{asked}")
        return await self.until(
            f"/deploy/status?runId={run_id}&env={environment}",
            lambda s: s["phase"] != "Running",
            seconds,
        )

    async def ship(self, content: bytes, environment: str = "dev", **more: Any) -> tuple[str, Any]:
        """Upload, prepare and deploy; return the runId and the deployment's status."""
        run_id = await self.upload(content, **more)
        prepared = await self.prepare(run_id)
        assert prepared["phase"] == "Succeeded", prepared
        deployed = await self.deploy(run_id, environment)
        assert deployed["phase"] == "Succeeded", deployed
        return run_id, deployed

    async def until(self, path: str, reached: Any, seconds: float = 60) -> Any:
        """Poll until the answer fits."""
        deadline = time.monotonic() + seconds
        while True:
            body = await self.get(path)
            if reached(body):
                return body
            assert time.monotonic() < deadline, body
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def passing(url: str) -> AsyncIterator[Caller]:
    """A session of its own with a service that others use too; its runs are taken away at the end."""
    async with Caller(url) as one:
        yield one
        for run in (await one.get("/runs"))["runs"]:
            await one.call("DELETE", f"/runs/{run['runId']}")


@contextlib.asynccontextmanager
async def running(
    data_dir: Path,
    environment: Mapping[str, str] | None = None,
    *,
    module: str = "server",
) -> AsyncIterator[tuple[Service, Caller]]:
    """Start a service and a session with it; end both."""
    started = Service(data_dir, environment, module=module)
    async with started as service, Caller(service.url) as caller:
        yield service, caller
