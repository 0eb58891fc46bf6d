"""Frozen records of what the service keeps: runs, preparations, deployments, leases."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from server.states import Phase, Scope, Step, Wanted

Params = dict[str, Any]

Admitted = dict[str, tuple[str, float | None]]
"""Tokens that predict at an address: digest and end, in Unix time, by id."""


def now(*before: datetime | None) -> datetime:
    """Return the present time in UTC; never one before those, though the clock was put back."""
    return max((datetime.now(UTC), *(moment for moment in before if moment is not None)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A message as it is kept: a code and the parameters of its sentence."""

    code: str
    params: Params = field(default_factory=dict)


class Actor(NamedTuple):
    """Who does something: a session, a program by its token, or the service by itself."""

    kind: str
    token_id: str | None = None


SERVICE = Actor("service")

acting: ContextVar[Actor] = ContextVar("acting", default=SERVICE)
"""Whoever the request under way has proven to come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a run: the code of its sentence, who did it, and when.

    ``reason`` is what was said of it then. ``sequence`` counts the events of all runs; zero is one that is
    not kept yet.
    """

    run_id: str
    code: str
    at: datetime
    by: Actor = SERVICE
    params: Params = field(default_factory=dict)
    reason: Text | None = None
    sequence: int = 0


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

    @property
    def id(self) -> str:
        """How logs and traces call it: environment, model and version."""
        return f"{self.key.environment}/{self.key.model}/{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The exclusive claim of one run on one GPU, by UUID."""

    gpu_id: str
    run_id: str
    taken_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A program's credential. ``digest`` is the SHA-256 of its secret, in hex.

    ``model`` limits predictions to one of the owner's models.
    """

    token_id: str
    digest: str
    owner: str
    name: str
    scope: Scope
    model: str | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    used_at: datetime | None = None

    def is_expired(self, at: datetime) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= at

    def is_live(self, at: datetime) -> bool:
        """Whether it is good for anything."""
        return self.revoked_at is None and not self.is_expired(at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveOverride:
    """What a run promises in an environment beside what the settings say; None means as they do.

    ``availability`` and ``latency_share`` in percent, ``latency_seconds`` and ``seconds`` (of
    the window) in seconds.
    """

    availability: float | None = None
    latency_seconds: float | None = None
    latency_share: float | None = None
    seconds: float | None = None
