"""Events that follow from a record before and after its change."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from server.messages import LANGUAGES, Messages
from server.records import (
    SERVICE,
    Actor,
    Deployment,
    DeploymentKey,
    Event,
    Preparation,
    Text,
    now,
    planned_steps,
)
from server.states import Phase, Wanted
from server.store import timeline

RUN, OTHER = "a" * 32, "b" * 32
KEY = DeploymentKey("me", "iris", "prod")
ME = Actor("session")
AT = now()
REASON = Text(code="out_of_memory")


def preparation(
    done: int, *, attempt: int = 1, resumed: int = 0, failed: bool = False, later: int = 0
) -> Preparation:
    steps = list(planned_steps())
    for index in range(done):
        at = AT + timedelta(hours=later, seconds=index)
        steps[index] = replace(steps[index], status=Phase.SUCCEEDED, completed_at=at)
    if failed:
        steps[done] = replace(steps[done], status=Phase.FAILED, completed_at=AT, message=REASON)
    phase = Phase.SUCCEEDED if done == len(steps) else Phase.RUNNING
    return Preparation(
        run_id=RUN,
        attempt=attempt,
        resumed=resumed,
        phase=Phase.FAILED if failed else phase,
        device="cpu",
        steps=tuple(steps),
        updated_at=AT,
    )


def deployment(**changes: object) -> Deployment:
    made = Deployment(
        key=KEY,
        port=1,
        wanted=Wanted.UP,
        version=1,
        run_id=RUN,
        wanted_at=AT,
        first_wanted_at=AT,
    )
    return replace(made, **changes)


def told(events: list[Event]) -> list[str]:
    return [
        " ".join(map(str, (each.code.removeprefix("event_"), *each.params.values())))
        for each in events
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, preparation(0), ["preparation_started 1 cpu"]),
        (preparation(0), preparation(0), []),
        (preparation(1), preparation(2), ["step_done inspection 1"]),
        # What could not be kept at its time is told with the next change.
        (preparation(0), preparation(2), ["step_done integrity 1", "step_done inspection 1"]),
        (preparation(6), preparation(7), ["step_done passport 1", "prepared 1"]),
        (preparation(7), preparation(7), []),
        (preparation(2), preparation(2, failed=True), ["step_failed device 1"]),
        (preparation(2, failed=True), preparation(2, failed=True), []),
        (preparation(2, failed=True), preparation(0, attempt=2), ["preparation_started 2 cpu"]),
        (preparation(4), preparation(0, resumed=1), ["preparation_resumed 1"]),
        # The restart itself could not be kept.
        (
            preparation(4),
            preparation(1, resumed=1, later=1),
            ["preparation_resumed 1", "step_done integrity 1"],
        ),
        # Taken up too often: it is not begun anew, and what was done is not told again.
        (
            preparation(2, resumed=2),
            preparation(2, resumed=3, failed=True),
            ["step_failed device 1"],
        ),
    ],
)
def test_a_preparation(before: Preparation | None, after: Preparation, expected: list[str]) -> None:
    events = timeline.of_preparation(before, after, ME)
    assert told(events) == expected
    wishes = [each.by for each in events if each.code == "event_preparation_started"]
    assert {each.by for each in events if each.code != "event_preparation_started"} <= {SERVICE}
    assert set(wishes) <= {ME}


def test_a_failed_step_says_why() -> None:
    [event] = timeline.of_preparation(preparation(2), preparation(2, failed=True), SERVICE)
    assert event.reason == REASON


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, "GPU-a", ["lease_taken GPU-a"]),
        ("GPU-a", "GPU-a", []),
        ("GPU-a", "GPU-b", ["lease_released GPU-a", "lease_taken GPU-b"]),
        ("GPU-b", None, ["lease_released GPU-b"]),
        (None, None, []),
    ],
)
def test_a_lease(before: str | None, after: str | None, expected: list[str]) -> None:
    assert told(timeline.of_lease(RUN, before, after, SERVICE)) == expected


def test_what_is_wanted() -> None:
    first, second = deployment(), deployment(version=2, run_id=OTHER, replicas=2)
    stopped = deployment(wanted=Wanted.STOPPED)
    assert told(timeline.of_want(None, first, ME)) == ["deploy_wanted prod 1 1"]
    assert timeline.of_want(first, first, ME) == []
    events = timeline.of_want(first, second, ME)
    assert told(events) == ["superseded prod 1 2", "deploy_wanted prod 2 2"]
    assert [each.run_id for each in events] == [RUN, OTHER]
    assert told(timeline.of_want(first, stopped, ME)) == ["stop_wanted prod 1"]
    assert timeline.of_want(stopped, stopped, ME) == []
    # Nobody is superseded by what comes after a stop.
    assert told(timeline.of_want(stopped, second, ME)) == ["deploy_wanted prod 2 2"]


def test_what_is_seen() -> None:
    fresh = deployment(version=2, run_id=OTHER)
    serving = replace(fresh, serving_version=1, serving_run_id=RUN)
    moved = replace(fresh, serving_version=2, serving_run_id=OTHER)
    failed = replace(serving, failed_version=2, message=REASON)
    assert told(timeline.of_sight(fresh, serving)) == ["serving prod 1"]
    assert timeline.of_sight(serving, replace(serving, port=2)) == []
    events = timeline.of_sight(serving, moved)
    assert told(events) == ["handed_over prod 2 1", "replaced prod 1 2"]
    assert [each.run_id for each in events] == [OTHER, RUN]
    [event] = timeline.of_sight(serving, failed)
    assert (event.code, event.run_id, event.reason) == ("event_deploy_failed", OTHER, REASON)
    ended = replace(failed, serving_version=None, serving_run_id=None)
    assert told(timeline.of_sight(failed, ended)) == ["serving_ended prod 1"]
    stopped = replace(moved, wanted=Wanted.STOPPED)
    down = replace(stopped, serving_version=None, serving_run_id=None)
    assert told(timeline.of_sight(stopped, down)) == ["stopped prod 2"]
    assert timeline.of_sight(down, down) == []
    given_up = replace(fresh, wanted=Wanted.STOPPED, failed_version=2)
    assert told(timeline.of_sight(given_up, replace(given_up, failed_version=None))) == [
        "stopped prod 2"
    ]


def test_a_failure_is_told_to_the_run_that_failed_though_another_is_wanted_by_now() -> None:
    looked = deployment(version=2, run_id=OTHER)
    wanted = deployment(version=3, run_id=RUN)
    failed = replace(wanted, failed_version=2, message=REASON)
    [event] = timeline.of_sight(wanted, failed, looked)
    assert (event.code, event.run_id, event.params["version"]) == ("event_deploy_failed", OTHER, 2)
    # It could not be kept then, and whose it was is not known any more.
    assert timeline.of_sight(wanted, failed, wanted) == []


def test_a_restart_of_the_service_is_told_to_those_that_are_to_be_up() -> None:
    up = deployment(version=2, run_id=OTHER, serving_version=1, serving_run_id=RUN)
    events = timeline.of_restart([up, deployment(wanted=Wanted.STOPPED)])
    assert {(each.run_id, each.params["version"]) for each in events} == {(RUN, 1), (OTHER, 2)}


def test_what_a_model_made_up_is_kept_in_part() -> None:
    params = {f"p{n}": ["x" * 300] * 100 for n in range(30)}
    kept = timeline.bounded(Text(code="model_raised", params={**params, "evidence": "here"}))
    assert kept is not None
    assert kept.params["evidence"] == "here"
    assert len(json.dumps(kept.params)) < 3000
    warnings = [{"code": "x" * 3000, "params": {}}]
    kept = timeline.bounded(Text(code="crash_loop", params={"warnings": warnings}))
    assert kept == Text(code="crash_loop", params={})


@pytest.mark.parametrize(
    ("code", "name"), [("archive_several_models", "models"), ("packages_offline", "packages")]
)
def test_a_long_list_still_fills_its_sentence(code: str, name: str) -> None:
    params = {name: [f"fold-{number}/model-{number:040}.onnx" for number in range(60)]}
    kept = timeline.bounded(Text(code=code, params=params))
    assert kept is not None
    assert len(json.dumps(kept.params)) < 2100
    for language in LANGUAGES:
        said = Messages().render(code, kept.params, language)
        assert said == Messages().render(code, params, language)
        assert "fold-0/model" in said


# Callers tell events apart by these: none is ever renamed.
CODES = {
    "event_deploy_failed",
    "event_deploy_wanted",
    "event_handed_over",
    "event_lease_released",
    "event_lease_taken",
    "event_preparation_resumed",
    "event_preparation_started",
    "event_prepared",
    "event_replaced",
    "event_replica_crashed",
    "event_service_restarted",
    "event_serving",
    "event_serving_again",
    "event_serving_ended",
    "event_start_failed",
    "event_step_done",
    "event_step_failed",
    "event_stop_wanted",
    "event_stopped",
    "event_superseded",
    "event_uploaded",
}


def test_every_event_has_a_text_that_its_parameters_fill() -> None:
    source = Path(timeline.__file__).read_text()
    codes = {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and str(node.value).startswith("event_")
    }
    assert codes == CODES
    messages = Messages()
    for language in LANGUAGES:
        known = {code for code in messages.codes(language) if code.startswith("event_")}
        assert codes == known
