"""Runs the hostile models for another user, or with fewer rights, where the tests are run by root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import escaping
from tests.support.needs import lacks, need

NOBODY = 65534
PYTHON = "/usr/bin/python3"
"""An interpreter that every user can read; the tests' own may lie in somebody's home."""

only_as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="the other tests are run without being root"
)


def as_nobody(*arguments: Path) -> dict[str, Any]:
    """Return what ``tests.support.escaping`` prints for another user."""
    asked = [PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if subprocess.run(asked, check=False, capture_output=True).returncode != 0:
        lacks(f"needs {PYTHON} of version 3.11 or newer: apt-get install python3")
    command = [need("setpriv", "util-linux"), "--reuid", str(NOBODY), "--regid", str(NOBODY)]
    command.append("--clear-groups")
    for path in (Path(escaping.__file__), *arguments):
        # The folder: an interpreter of an environment is a link to one that need not be readable.
        if subprocess.run([*command, "test", "-r", path.parent], check=False).returncode != 0:
            pytest.skip(f"other users cannot read {path}")
    return _printed([*command, PYTHON, escaping.__file__, *map(str, arguments)])


def as_root_that_may_not_mount() -> dict[str, Any]:
    """Return what it prints for root as it is in an ordinary container."""
    setpriv = need("setpriv", "util-linux")
    command = [setpriv, "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable]
    return _printed([*command, escaping.__file__])


def _printed(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found
