"""The real Prometheus and promtool of the machine, on a free port of loopback."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.support.needs import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def binary(name: str) -> str:
    """Path of an installed program; without it the test is skipped, or fails where CI=true."""
    return need(name, "prometheus")


def promtool(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end, in a folder."""
    return subprocess.run(
        [binary("promtool"), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=folder,
    )


def free_port() -> int:
    """A port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(config: Path, data: Path, port: int | None = None) -> Iterator[str]:
    """A Prometheus on a configuration and a data folder, on a free port; its base URL."""
    url = f"http://127.0.0.1:{port or free_port()}"
    command = [
        binary("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--storage.tsdb.retention.time=100y",
        "--log.level=warn",
    ]
    with (data.parent / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_until_ready(url, process, data.parent / "prometheus.log")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{url}/-/ready", timeout=1) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.05)
    pytest.fail(f"Prometheus did not start: {log.read_text()[-2000:]}")
