"""What happened, derived from a record before and after its change: pure decisions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from server.records import SERVICE, Actor, Deployment, Event, Preparation, Run, Text, now
from server.scrubbing import LIMIT
from server.states import Phase, Wanted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from server.records import DeploymentKey, StepState

# A model's process may have made them up, and an event is kept for as long as its run.
_REASON_CHARS = 2000
# As much of one as a sentence has room for.
_VALUE_CHARS = LIMIT
_ENDED = (Phase.SUCCEEDED, Phase.FAILED)


def of_upload(run: Run, by: Actor) -> Event:
    """Return that a run came to be."""
    params = {"file": run.file_name, "size": run.size_bytes, "digest": run.digest}
    return Event(run_id=run.run_id, code="event_uploaded", at=run.created_at, by=by, params=params)


def of_preparation(before: Preparation | None, after: Preparation, by: Actor) -> list[Event]:
    """Return what a preparation has come to; only its start is somebody's wish."""
    at = now(after.updated_at)
    was = before or Preparation(run_id=after.run_id)
    found = []
    is_new = after.attempt != was.attempt
    ended = set() if is_new else _ends(was)
    # One that was taken up too often is not begun anew, but keeps its steps and has failed.
    begun_anew = is_new or (after.resumed > was.resumed and ended.isdisjoint(_ends(after)))
    if is_new:
        start = "event_preparation_started"
        found.append(_of(after, start, at, by, attempt=after.attempt, device=after.device))
    elif begun_anew:
        found.append(_of(after, "event_preparation_resumed", at, attempt=after.attempt))
    for state in after.steps:
        if state.status in _ENDED and _end(state) not in ended:
            is_done = state.status is Phase.SUCCEEDED
            found.append(
                _of(
                    after,
                    "event_step_done" if is_done else "event_step_failed",
                    state.completed_at or at,
                    reason=state.message,
                    step=state.step.value,
                    attempt=after.attempt,
                )
            )
    if after.phase is Phase.SUCCEEDED and (begun_anew or was.phase is not Phase.SUCCEEDED):
        found.append(_of(after, "event_prepared", at, attempt=after.attempt))
    return found


def _ends(made: Preparation) -> set[tuple[object, ...]]:
    return {_end(state) for state in made.steps if state.status in _ENDED}


def _end(state: StepState) -> tuple[object, ...]:
    return state.step, state.status, state.completed_at


def _of(
    made: Preparation,
    code: str,
    at: datetime,
    by: Actor = SERVICE,
    reason: Text | None = None,
    **params: object,
) -> Event:
    return Event(run_id=made.run_id, code=code, at=at, by=by, params=params, reason=bounded(reason))


def of_lease(run_id: str, before: str | None, after: str | None, by: Actor) -> list[Event]:
    """Return which GPUs a run has let go and taken; ``before`` and ``after`` are their UUIDs."""
    if before == after:
        return []
    codes = ((before, "event_lease_released"), (after, "event_lease_taken"))
    return [
        Event(run_id=run_id, code=code, at=now(), by=by, params={"gpu": gpu})
        for gpu, code in codes
        if gpu is not None
    ]


def of_want(before: Deployment | None, after: Deployment, by: Actor) -> list[Event]:
    """Return what is wanted anew of a deployment."""
    if after.wanted is Wanted.STOPPED:
        if before is not None and before.wanted is Wanted.STOPPED:
            return []
        return [_at(after.key, after.run_id, after.version, "event_stop_wanted", by=by)]
    if before is not None and (before.version, before.wanted) == (after.version, after.wanted):
        return []
    wanted = _at(
        after.key,
        after.run_id,
        after.version,
        "event_deploy_wanted",
        by=by,
        replicas=after.replicas,
    )
    is_other = before is not None and before.wanted is Wanted.UP and before.run_id != after.run_id
    if before is None or not is_other:
        return [wanted]
    superseded = _at(
        after.key, before.run_id, before.version, "event_superseded", by=by, newer=after.version
    )
    return [superseded, wanted]


def of_sight(
    before: Deployment, after: Deployment, looked: Deployment | None = None
) -> list[Event]:
    """Return what was seen anew of a deployment.

    ``looked`` is what was wanted when somebody looked: another run may be wanted by now, and what
    failed was not that one's.
    """
    key, failed = after.key, after.failed_version
    found = _of_failure(before, after, looked or after)
    older, newer = before.serving_version, after.serving_version
    older_run, newer_run = before.serving_run_id, after.serving_run_id
    if newer is not None and newer_run is not None:
        if (older, older_run) == (newer, newer_run):
            return found
        if older is None or older == newer:
            found.append(_at(key, newer_run, newer, "event_serving"))
        else:
            found.append(_at(key, newer_run, newer, "event_handed_over", older=older))
        if older is not None and older_run is not None and older_run != newer_run:
            found.append(_at(key, older_run, older, "event_replaced", newer=newer))
    elif after.wanted is Wanted.STOPPED:
        if older is not None and older_run is not None:
            found.append(_at(key, older_run, older, "event_stopped"))
        elif before.failed_version is not None and failed is None:
            found.append(_at(key, after.run_id, after.version, "event_stopped"))
    elif older is not None and older_run is not None:
        found.append(_at(key, older_run, older, "event_serving_ended", reason=after.message))
    return found


def _of_failure(before: Deployment, after: Deployment, looked: Deployment) -> list[Event]:
    failed, reason = after.failed_version, after.message
    if failed is None or failed == before.failed_version:
        return []
    runs = [made.run_id for made in (looked, after) if made.version == failed]
    code = "event_deploy_failed"
    return [_at(after.key, run_id, failed, code, reason=reason) for run_id in runs[:1]]


def of_restart(deployments: Iterable[Deployment]) -> list[Event]:
    """Return that the service began anew, for every deployment that it brings up again."""
    return [
        _at(made.key, run_id, version, "event_service_restarted")
        for made in deployments
        if made.wanted is Wanted.UP
        for run_id, version in _up(made)
    ]


def _up(made: Deployment) -> set[tuple[str, int]]:
    pairs = {(made.run_id, made.version)}
    if made.serving_run_id is not None and made.serving_version is not None:
        pairs.add((made.serving_run_id, made.serving_version))
    return pairs


def of_crash(key: DeploymentKey, run_id: str, version: int, replica: int, reason: Text) -> Event:
    """Return that a replica has ended by itself."""
    return _at(key, run_id, version, "event_replica_crashed", reason=reason, replica=replica)


def of_failed_start(key: DeploymentKey, run_id: str, version: int, reason: Text) -> Event:
    """Return that a replica could not be started, and that it is tried again."""
    return _at(key, run_id, version, "event_start_failed", reason=reason)


def of_end(key: DeploymentKey, run_id: str, version: int) -> Event:
    """Return that a deployment has stopped of which there was nothing to be seen."""
    return _at(key, run_id, version, "event_stopped")


def of_return(key: DeploymentKey, run_id: str, version: int) -> Event:
    """Return that a version which had lost replicas serves with all of them again."""
    return _at(key, run_id, version, "event_serving_again")


def _at(
    key: DeploymentKey,
    run_id: str,
    version: int,
    code: str,
    *,
    by: Actor = SERVICE,
    reason: Text | None = None,
    **params: object,
) -> Event:
    return Event(
        run_id=run_id,
        code=code,
        at=now(),
        by=by,
        params={"environment": key.environment, "version": version, **params},
        reason=bounded(reason),
    )


def bounded(text: Text | None) -> Text | None:
    """Return a message whose long parameters are cut, and left out where there are too many.

    Without one of its parameters a sentence cannot be told any more, only its code.
    """
    if text is None:
        return None
    kept, left = {}, _REASON_CHARS
    for name, value in sorted(text.params.items(), key=lambda item: len(json.dumps(item[1]))):
        for form in (value, _cut(value)):
            size = len(json.dumps(form)) + len(name)
            if form is not None and size <= left:
                kept[name] = form
                left -= size
                break
    return Text(code=text.code, params=kept)


def _cut(value: object) -> str | None:
    """Return the beginning of a text or a list, as a sentence shows it; of all else nothing."""
    if isinstance(value, list | tuple) and not any(isinstance(item, dict) for item in value):
        value = ", ".join(map(str, value))
    return f"{value[:_VALUE_CHARS]}…" if isinstance(value, str) else None
