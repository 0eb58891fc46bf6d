"""What every test gets: time for slow machines and for the first build of an environment."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")

# The first test that needs an environment waits until it is built, which may mean a download.
_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give end-to-end tests more time; one that knows better keeps its own."""
    for item in items:
        if item.get_closest_marker("e2e") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SECONDS))
