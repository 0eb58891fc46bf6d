"""Fixtures of the contract tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def model_python() -> Callable[[str], Path]:
    """Python of the model environment for one kind of model."""

    def find(kind: str) -> Path:
        python = os.environ.get("MODEL_PYTHON")
        if not python:
            pytest.skip(f"needs MODEL_PYTHON: a Python with the framework of {kind} models")
        return Path(python)

    return find
