"""Interpreters of this machine that are older than the one the tests run on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.needs import lacks

if TYPE_CHECKING:
    from collections.abc import Iterator


def older_python(*minors: str) -> str:
    """Return the path of an interpreter of one of these versions (``3.10``), or end the test."""
    for path in (path for minor in minors for path in _candidates(minor)):
        asked = subprocess.run([path, "-I", "-c", ""], capture_output=True, check=False)
        if asked.returncode == 0:
            return path
    return lacks(f"needs an interpreter of Python {' or '.join(minors)}")


def _candidates(minor: str) -> Iterator[str]:
    found = shutil.which(f"python{minor}")
    if found is not None:
        yield found
    # Managers of versions lay them side by side.
    beside = Path(sys.base_prefix).resolve().parent.glob(f"*{minor}.*/bin/python{minor}")
    yield from sorted(map(str, beside))
