"""What a test needs of the machine: what is missing skips it by name, and fails it under CI=true."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need(program: str, package: str) -> str:
    """Return the path of ``program``, which Debian's ``package`` brings, or end the test."""
    path = shutil.which(program)
    if path is None:
        lacks(f"needs {program}: apt-get install {package}")
    return path


def lacks(reason: str) -> NoReturn:
    """End a test for something that this machine cannot give it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
