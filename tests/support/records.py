"""Records as a test needs some: a run, and a deployment of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.records import Deployment, DeploymentKey, Run, now
from server.states import Wanted


def a_run(run_id: str = "a" * 32, owner: str = "me", model: str | None = None) -> Run:
    """Return a run, of the model that it is called after unless one is named."""
    return Run(
        run_id=run_id,
        owner=owner,
        model=model or run_id,
        file_name="model.onnx",
        size_bytes=1,
        digest="d" * 64,
        created_at=now(),
    )


def a_deployment(
    run: Run, version: int = 1, environment: str = "dev", **changes: Any
) -> Deployment:
    """Return a deployment that is wanted, and has no port yet."""
    made = Deployment(
        key=DeploymentKey(run.owner, run.model, environment),
        port=0,
        wanted=Wanted.UP,
        version=version,
        run_id=run.run_id,
        wanted_at=now(),
        first_wanted_at=now(),
    )
    return replace(made, **changes)
