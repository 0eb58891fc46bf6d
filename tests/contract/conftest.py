"""Fixtures of the contract tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.environments import ModelEnvironments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def model_python() -> Callable[[str], Path]:
    """Python of the environment that the product builds for one kind of model."""
    return ModelEnvironments().python
