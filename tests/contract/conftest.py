"""Fixtures of the contract tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.environments import ModelEnvironments
from tests.support.reconciled_world import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def model_python() -> Callable[[str], Path]:
    """Python of the environment that the product builds for one kind of model."""
    return ModelEnvironments().python


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """One deployment with its reconciler, on a store of its own."""
    async with World.on(tmp_path) as made:
        yield made
