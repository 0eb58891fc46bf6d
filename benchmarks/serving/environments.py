"""Environments for the peers: one each, kept under ``.cache`` for as long as their pins stay."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.common import ROOT, say

if TYPE_CHECKING:
    from pathlib import Path

CACHE = (ROOT / ".cache").resolve() / "peers"
INSTALL_SECONDS = 1200
ONNXRUNTIME = "onnxruntime==1.32.0"

PINS: dict[str, tuple[str, ...]] = {
    "tools": ("scikit-learn==1.9.1", "skl2onnx==1.20.0", "magika==1.0.3", ONNXRUNTIME),
    "aiohttp": ("aiohttp==3.14.5", "uvloop==0.23.0", "orjson==3.13.0", ONNXRUNTIME),
    "fastapi": (
        *("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
        *("orjson==3.13.0", ONNXRUNTIME),
    ),
    # With a newer uvloop it starts no worker: "There is no current event loop".
    "mlserver": ("mlserver==1.7.1", "uvloop==0.21.0", ONNXRUNTIME),
    "triton": ("nvidia-pytriton==0.7.0", ONNXRUNTIME),
    "litserve": ("litserve==0.2.19", "uvloop==0.23.0", "httptools==0.9.0", ONNXRUNTIME),
    "bentoml": ("bentoml==1.4.39", ONNXRUNTIME),
    "mlflow": ("mlflow==3.17.2", "onnx==1.22.0", ONNXRUNTIME),
    "ray": ("ray[serve]==2.60.0", "orjson==3.13.0", ONNXRUNTIME),
}


@dataclass(frozen=True, slots=True)
class Environment:
    """A peer's interpreter, or why there is none."""

    folder: Path
    failure: str = ""

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


def environment(name: str) -> Environment:
    """Return a peer's environment, made if it is not there yet."""
    pins = PINS[name]
    digest = hashlib.sha256("\n".join((sys.version, *pins)).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    if (folder / "FREEZE").exists():
        return Environment(folder)
    say(f"installing {' '.join(pins)}")
    began = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    failure = _install(folder, pins)
    if failure:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        say(f"installed {name} in {time.perf_counter() - began:.0f} s")
    return Environment(folder, failure)


def _install(folder: Path, pins: tuple[str, ...]) -> str:
    """Install the pins; return why that failed, or nothing."""
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    # Wheels only: a source distribution of these builds for a long time, or not at all.
    binary = ("--prefer-binary", "--only-binary", "onnxruntime,ray,numpy,scipy,scikit-learn")
    try:
        done = subprocess.run(
            [*pip, "install", "-q", *binary, *pins],
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not installed within {INSTALL_SECONDS} s"
    if done.returncode != 0:
        return "not installed: " + done.stderr.strip().rsplit("\n", 1)[-1][:200]
    frozen = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True)
    (folder / "FREEZE").write_text(frozen.stdout)
    return ""
