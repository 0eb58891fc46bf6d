"""Records to rows and back."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from server.records import (
    Deployment,
    DeploymentKey,
    Lease,
    Preparation,
    Run,
    StepState,
    Text,
)
from server.states import Phase, Step, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

Row = dict[str, Any]


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _text(value: Mapping[str, Any] | None) -> Text | None:
    return None if value is None else Text(code=value["code"], params=dict(value["params"]))


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _message(text: Text | None) -> Row | None:
    return None if text is None else {"code": text.code, "params": text.params}


def run_row(run: Run) -> Row:
    """Return a run's row."""
    return {
        "run_id": run.run_id,
        "owner": run.owner,
        "model": run.model,
        "file_name": run.file_name,
        "size_bytes": run.size_bytes,
        "digest": run.digest,
        "created_at": run.created_at.isoformat(),
    }


def run_record(row: Mapping[str, Any]) -> Run:
    """Return a row's run."""
    return Run(**{**row, "created_at": datetime.fromisoformat(row["created_at"])})


def preparation_row(made: Preparation) -> Row:
    """Return a preparation's row."""
    return {
        "run_id": made.run_id,
        "attempt": made.attempt,
        "resumed": made.resumed,
        "phase": made.phase.value,
        "device": made.device,
        "steps": [
            {
                "step": state.step.value,
                "status": state.status.value,
                "message": _message(state.message),
                "completed_at": _iso(state.completed_at),
            }
            for state in made.steps
        ],
        "model_kind": made.model_kind,
        "model_file": made.model_file,
        "sample": made.sample,
        "environment": made.environment,
        "passport": made.passport,
        "updated_at": _iso(made.updated_at),
    }


def preparation_record(row: Mapping[str, Any]) -> Preparation:
    """Return a row's preparation."""
    steps = tuple(
        StepState(
            step=Step(state["step"]),
            status=Phase(state["status"]),
            message=_text(state["message"]),
            completed_at=_moment(state["completed_at"]),
        )
        for state in row["steps"]
    )
    return Preparation(
        **{
            **row,
            "phase": Phase(row["phase"]),
            "steps": steps,
            "updated_at": _moment(row["updated_at"]),
        }
    )


def lease_row(lease: Lease) -> Row:
    """Return a lease's row."""
    return {
        "gpu_id": lease.gpu_id,
        "run_id": lease.run_id,
        "taken_at": lease.taken_at.isoformat(),
    }


def lease_record(row: Mapping[str, Any]) -> Lease:
    """Return a row's lease."""
    return Lease(**{**row, "taken_at": datetime.fromisoformat(row["taken_at"])})


def deployment_row(made: Deployment) -> Row:
    """Return a deployment's row."""
    return {
        **made.key._asdict(),
        "port": made.port,
        "wanted": made.wanted.value,
        "version": made.version,
        "run_id": made.run_id,
        "wanted_at": made.wanted_at.isoformat(),
        "first_wanted_at": made.first_wanted_at.isoformat(),
        "serving_version": made.serving_version,
        "serving_run_id": made.serving_run_id,
        "failed_version": made.failed_version,
        "message": _message(made.message),
        "seen_at": _iso(made.seen_at),
        "replicas": made.replicas,
    }


def deployment_record(row: Mapping[str, Any]) -> Deployment:
    """Return a row's deployment."""
    values = dict(row)
    key = DeploymentKey(
        owner=values.pop("owner"),
        model=values.pop("model"),
        environment=values.pop("environment"),
    )
    return Deployment(
        **{
            **values,
            "key": key,
            "wanted": Wanted(values["wanted"]),
            "wanted_at": datetime.fromisoformat(values["wanted_at"]),
            "first_wanted_at": datetime.fromisoformat(values["first_wanted_at"]),
            "message": _text(values["message"]),
            "seen_at": _moment(values["seen_at"]),
        }
    )
