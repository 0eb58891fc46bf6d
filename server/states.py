"""The closed sets of states, and the pure decisions between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What the page shows of a step, a preparation or a deployment."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Step(StrEnum):
    """The ordered steps of a preparation; the value is the step's stable name."""

    INTEGRITY = "integrity"
    INSPECTION = "inspection"
    DEVICE = "device"
    ENVIRONMENT = "environment"
    LOAD = "load"
    SMOKE = "smoke-test"
    PASSPORT = "passport"


class Wanted(StrEnum):
    """What the pipeline wants of a deployment."""

    UP = "up"
    STOPPED = "stopped"


class Scope(StrEnum):
    """What a token is good for."""

    API = "api"
    """Whatever its owner's session may do, save for making more of its kind."""
    INFERENCE = "inference"
    """Predictions of its owner's models, or of one of them."""
    METRICS = "metrics"
    """The figures of the service and of all replicas."""


class Candidate(StrEnum):
    """How far replicas have come that do not take traffic yet."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


class Action(StrEnum):
    """The one next step of the reconciler for a deployment."""

    NOTHING = "nothing"
    START = "start"
    WAIT = "wait"
    BACK_OFF = "back-off"
    ADMIT = "admit"
    JUDGE = "judge"
    ABANDON = "abandon"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the reconciler sees of one deployment; versions are those of roll-outs.

    ``serving`` is the version whose replicas take traffic now, ``served`` the newest version
    that ever did, ``failed`` the newest one that could not. ``is_short`` says that some of the
    serving version's replicas are missing. ``backing_off`` is true until the next attempt is due.
    """

    serving: int | None = None
    is_short: bool = False
    candidate: int | None = None
    candidate_state: Candidate | None = None
    served: int | None = None
    failed: int | None = None
    backing_off: bool = False


def goal(version: int, seen: Seen) -> int | None:
    """Return the version that should serve: the wanted one, or the one before a failed one."""
    if seen.failed != version:
        return version
    return seen.served if seen.served != version else None


def next_action(wanted: Wanted, version: int, seen: Seen) -> Action:
    """Decide the one next step towards what is wanted."""
    match wanted:
        case Wanted.STOPPED:
            if seen.candidate is not None:
                return Action.ABANDON
            is_left = (seen.serving, seen.served, seen.failed) != (None, None, None)
            return Action.STOP if is_left else Action.NOTHING
        case Wanted.UP:
            return _towards(goal(version, seen), seen)


def _towards(target: int | None, seen: Seen) -> Action:
    if seen.candidate is not None and seen.candidate_state is not None:
        if seen.candidate != target:
            return Action.ABANDON
        match seen.candidate_state:
            case Candidate.STARTING:
                return Action.WAIT
            case Candidate.READY:
                return Action.ADMIT
            case Candidate.FAILED:
                return Action.JUDGE
    if target is None or (seen.serving == target and not seen.is_short):
        return Action.NOTHING
    return Action.BACK_OFF if seen.backing_off else Action.START


def public_phase(wanted: Wanted, version: int, seen: Seen) -> Phase:
    """Return the phase of the newest roll-out, a total function of wanted and seen."""
    match wanted:
        case Wanted.STOPPED:
            return Phase.PENDING
        case Wanted.UP:
            if seen.failed == version:
                return Phase.FAILED
            return Phase.SUCCEEDED if seen.serving == version else Phase.RUNNING
