"""Programs that a test needs: missing ones skip it by name, and fail it under CI=true."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str, package: str) -> str:
    """Return the path of ``program``, which Debian's ``package`` brings, or end the test."""
    path = shutil.which(program)
    if path is not None:
        return path
    reason = f"needs {program}: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
