"""Fixtures of the end-to-end tests: the model environments that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.environments import ModelEnvironments

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def environments() -> ModelEnvironments:
    """The model environments of the whole test session."""
    return ModelEnvironments()


@pytest.fixture
def data_dir(tmp_path: Path, environments: ModelEnvironments) -> Path:
    """A data folder of this test's own, with the shared environments in it."""
    return environments.lend(tmp_path / "data")
