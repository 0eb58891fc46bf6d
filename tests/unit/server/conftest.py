"""Fixtures of the service's unit tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.environments import build as build_module
from tests.support.tiny_environments import World
from tests.support.tiny_wheels import wheel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    base = tmp_path / "requirements.in"
    base.write_text('# of the model server\ntiny-server>=1\nodd; python_version < "3"\n')
    monkeypatch.setattr(build_module, "MODEL_SERVER_REQUIREMENTS", base)
    made = World(tmp_path)
    wheel(made.wheels, "tiny-server", "1.0")
    wheel(made.wheels, "tiny-runtime", "1.0", requires=("tiny-base>=2",))
    wheel(made.wheels, "tiny-runtime", "2.0", requires=("tiny-base>=2",))
    wheel(made.wheels, "tiny-base", "2.5")
    yield made
    for environments in made.opened:
        await environments.close()
