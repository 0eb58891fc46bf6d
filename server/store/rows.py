"""Records to rows and back."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from server.records import (
    Actor,
    Deployment,
    DeploymentKey,
    Event,
    Lease,
    ObjectiveOverride,
    Preparation,
    Run,
    StepState,
    Text,
    Token,
)
from server.states import Phase, Scope, Step, Wanted

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
    """Return a row's preparation; of one that was read in part there is only that."""
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
            "updated_at": _moment(row.get("updated_at")),
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


def token_row(token: Token) -> Row:
    """Return a token's row."""
    return {
        "token_id": token.token_id,
        "digest": token.digest,
        "owner": token.owner,
        "name": token.name,
        "scope": token.scope.value,
        "model": token.model,
        "created_at": token.created_at.isoformat(),
        "expires_at": _iso(token.expires_at),
        "revoked_at": _iso(token.revoked_at),
        "used_at": _iso(token.used_at),
    }


def token_record(row: Mapping[str, Any]) -> Token:
    """Return a row's token."""
    return Token(
        **{
            **row,
            "scope": Scope(row["scope"]),
            "created_at": datetime.fromisoformat(row["created_at"]),
            "expires_at": _moment(row["expires_at"]),
            "revoked_at": _moment(row["revoked_at"]),
            "used_at": _moment(row["used_at"]),
        }
    )


def objective_row(run_id: str, environment: str, made: ObjectiveOverride) -> Row:
    """Return the row of what a run promises in an environment."""
    return {"run_id": run_id, "environment": environment, **asdict(made)}


def objective_record(row: Mapping[str, Any]) -> tuple[str, str, ObjectiveOverride]:
    """Return a row's run, its environment and what is promised."""
    values = dict(row)
    run_id, environment = values.pop("run_id"), values.pop("environment")
    return run_id, environment, ObjectiveOverride(**values)


def event_row(event: Event) -> Row:
    """Return the row of an event that is not kept yet: the database counts it."""
    return {
        "run_id": event.run_id,
        "code": event.code,
        "at": event.at.isoformat(),
        "actor": event.by.kind,
        "token_id": event.by.token_id,
        "params": event.params,
        "reason": _message(event.reason),
    }


def event_record(row: Mapping[str, Any]) -> Event:
    """Return a row's event."""
    return Event(
        sequence=row["sequence"],
        run_id=row["run_id"],
        code=row["code"],
        at=datetime.fromisoformat(row["at"]),
        by=Actor(row["actor"], row["token_id"]),
        params=row["params"],
        reason=_text(row["reason"]),
    )
