"""Environments of the public clients: apart from the product's, built once, kept between runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from uv import find_uv_bin

from tests.support.needs import lacks
from tests.support.wheels import wheel_links

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "clients"
PROGRAMS = Path(__file__).parent / "clients"
_COMPLETE = "COMPLETE"
_DIGEST_CHARS = 16


def client_python(name: str) -> Path:
    """Return the interpreter that has the packages of ``clients/{name}.txt``.

    If they cannot be installed the test that asks is skipped by name, or fails where CI=true.
    """
    pins = PROGRAMS / f"{name}.txt"
    key = f"{sys.version_info[:2]}\n{pins.read_text()}"
    root = FOLDER / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:_DIGEST_CHARS]}"
    python = root / "bin" / "python"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not (root / _COMPLETE).exists():
            _build(root, python, pins)
    return python


def _build(root: Path, python: Path, pins: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    _uv("venv", "--quiet", "--python", sys.executable, root, pins=pins)
    # The list is whole: what a client merely names as needed is not to be looked for.
    command = ["pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    links = [part for folder in wheel_links().split(",") for part in ("--find-links", folder)]
    command += links if wheel_links() else []
    _uv(*command, "--python", python, "--requirements", pins, pins=pins)
    (root / _COMPLETE).touch()


def _uv(*arguments: str | Path, pins: Path) -> None:
    done = subprocess.run(
        [find_uv_bin(), *arguments, "--no-config", "--cache-dir", FOLDER / ".uv"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        lacks(f"needs the packages of {pins.name}: {done.stderr.strip()[-600:]}")


def run_client(name: str, arguments: Sequence[str | Path], *, given: str = "") -> str:
    """Run a Python program in a client's environment; return what it printed."""
    done = subprocess.run(
        [client_python(name), "-W", "ignore", *arguments],
        input=given,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
