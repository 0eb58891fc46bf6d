"""What the steps of a preparation with a real model are said to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from server import keys
from tests.support import onnx_files
from tests.support.environments import ModelEnvironments
from tests.support.in_process import serving
from tests.support.wheels import wheel_links

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


async def test_every_step_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    links = tuple(part for part in wheel_links().split(",") if part)
    async with serving(ModelEnvironments().lend(tmp_path / "data"), wheel_links=links) as here:
        store = here.app[keys.STORE]
        show = store.show_progress

        def listen(made: Any) -> None:
            show(made)
            heard.extend(
                step.message.code
                for step in made.steps
                if step.status == "Running" and step.message is not None
            )

        monkeypatch.setattr(store, "show_progress", listen)
        status = await here.caller.prepare(await here.caller.upload(onnx_files.linear()), "cpu")
    assert status["phase"] == "Succeeded"
    assert [code for code in heard if not code.startswith("environment_")] == [
        "integrity_running",
        "inspection_running",
        "device_running",
        "load_running",
        "model_loading",
        "smoke_running",
        "smoke_test_running",
        "smoke_test_measuring",
        "passport_running",
    ]
    assert heard.index("environment_running") == 3
