"""Frozen records of what the service keeps: runs, preparations, deployments, leases."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from server.states import Phase, Step, Wanted

Params = dict[str, Any]


def now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A message as it is kept: a code and the parameters of its sentence."""

    code: str
    params: Params = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One uploaded artifact and its owner. ``digest`` is the SHA-256 of its bytes, in hex."""

    run_id: str
    owner: str
    model: str
    file_name: str
    size_bytes: int
    digest: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """One step of a preparation as the page shows it."""

    step: Step
    status: Phase = Phase.PENDING
    message: Text | None = None
    completed_at: datetime | None = None


def planned_steps() -> tuple[StepState, ...]:
    """Return every step, still to be done."""
    return tuple(StepState(step=step) for step in Step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """The newest attempt to make a run deployable.

    ``device`` is ``cpu`` or the UUID of a GPU; ``environment`` is the digest of the model
    environment, ``model_kind`` and ``model_file`` say what inspection found.
    """

    run_id: str
    attempt: int = 0
    resumed: int = 0
    phase: Phase = Phase.PENDING
    device: str = ""
    steps: tuple[StepState, ...] = field(default_factory=planned_steps)
    model_kind: str = ""
    model_file: str = ""
    sample: str | None = None
    environment: str = ""
    passport: Params | None = None
    updated_at: datetime | None = None


class DeploymentKey(NamedTuple):
    """A deployment belongs to one owner's model in one environment."""

    owner: str
    model: str
    environment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is wanted of a deployment (pipeline) and what was seen of it (reconciler).

    ``version`` counts up with every roll-out, ``replicas`` is how many of it are wanted; ``failed_version`` is the newest one that could
    not serve, ``serving_version`` and ``serving_run_id`` name the one that last could.
    """

    key: DeploymentKey
    port: int
    wanted: Wanted
    version: int
    run_id: str
    wanted_at: datetime
    first_wanted_at: datetime
    replicas: int = 1
    serving_version: int | None = None
    serving_run_id: str | None = None
    failed_version: int | None = None
    message: Text | None = None
    seen_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The exclusive claim of one run on one GPU, by UUID."""

    gpu_id: str
    run_id: str
    taken_at: datetime
