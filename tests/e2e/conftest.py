"""Fixtures of the end-to-end tests: the model environments that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.environments import ModelEnvironments

if TYPE_CHECKING:
    from pathlib import Path

# The first test that needs an environment waits until it is built, which may mean a download.
_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give end-to-end tests more time; one that knows better keeps its own."""
    for item in items:
        if item.get_closest_marker("e2e") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SECONDS))


@pytest.fixture(scope="session")
def environments() -> ModelEnvironments:
    """The model environments of the whole test session."""
    return ModelEnvironments()


@pytest.fixture
def data_dir(tmp_path: Path, environments: ModelEnvironments) -> Path:
    """A data folder of this test's own, with the shared environments in it."""
    return environments.lend(tmp_path / "data")
