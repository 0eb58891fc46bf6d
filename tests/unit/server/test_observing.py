"""What the reconciler's hooks count."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from metrics import names
from metrics.service import ServiceInstruments
from metrics.targets import Target
from server.reconcile.observing import Observing
from server.records import Deployment, DeploymentKey, now
from server.states import Action, Wanted

KEY = DeploymentKey(owner="o", model="iris", environment="prod")
MADE = Deployment(
    key=KEY,
    port=0,
    wanted=Wanted.UP,
    version=2,
    run_id="r1",
    wanted_at=now() - timedelta(seconds=40),
    first_wanted_at=now() - timedelta(days=1),
    serving_version=2,
)


def observing(*known: Deployment) -> tuple[Observing, CollectorRegistry]:
    registry = CollectorRegistry()
    instruments = ServiceInstruments(
        registry, environments=("prod",), actions=("start",), process=False
    )
    deployments = {made.key: made for made in known}
    store: Any = SimpleNamespace(
        deployments=deployments,
        deployments_of=lambda run_id: [
            made for made in deployments.values() if run_id in (made.run_id, made.serving_run_id)
        ],
    )
    return Observing(store, instruments), registry


def deployed(registry: CollectorRegistry) -> tuple[float | None, float | None]:
    labels = {"environment": "prod"}
    return (
        registry.get_sample_value(names.DEPLOY_DURATION + "_count", labels),
        registry.get_sample_value(names.DEPLOY_DURATION + "_sum", labels),
    )


def test_a_roll_out_took_from_the_wish_until_it_served() -> None:
    watching, registry = observing(MADE)
    watching.ended(KEY, "succeeded")

    count, seconds = deployed(registry)
    assert count == 1
    assert seconds is not None
    assert 40 <= seconds < 3600
    labels = {"environment": "prod", "result": "succeeded"}
    assert registry.get_sample_value(names.DEPLOYS, labels) == 1


@pytest.mark.parametrize(
    ("known", "result"),
    [
        ([MADE], "failed"),
        ([MADE], "stopped"),
        ([replace(MADE, serving_version=1)], "succeeded"),
        ([], "succeeded"),
    ],
    ids=["failed", "stopped", "fell back", "deleted"],
)
def test_what_did_not_bring_the_wanted_version_up_has_no_duration(
    known: list[Deployment], result: str
) -> None:
    watching, registry = observing(*known)
    watching.ended(KEY, result)

    assert deployed(registry) == (0, 0)


def test_a_step_is_measured_and_an_unforeseen_error_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    watching, registry = observing()
    with watching.around(MADE, Action.NOTHING):
        pass
    assert caplog.records == []
    with watching.around(MADE, Action.START):
        pass
    with pytest.raises(RuntimeError), watching.around(MADE, Action.START):
        raise RuntimeError

    labels = {"action": "start"}
    assert registry.get_sample_value(names.RECONCILE_DURATION + "_count", labels) == 2
    assert registry.get_sample_value(names.RECONCILE_FAILURES, labels) == 1
    assert "reconcile start took 0.0" in caplog.text


def test_a_crash_is_counted_where_it_happened() -> None:
    watching, registry = observing()
    watching.restarted(KEY)

    assert registry.get_sample_value(names.REPLICA_RESTARTS, {"environment": "prod"}) == 1


def said(watching: Observing, name: str, run_id: str, version: str) -> float:
    """What Prometheus is told of one version."""
    target = Target(
        run_id=run_id, model="iris", environment="prod", replica="gateway", version=version
    )
    lines = watching.text(target).splitlines()
    (value,) = (line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} "))
    return float(value)


def test_a_crash_is_counted_for_the_version_that_serves_and_no_other() -> None:
    made = replace(MADE, version=3, run_id="r2", serving_version=2, serving_run_id="r1")
    watching, _ = observing(made)
    for _ in range(2):
        watching.restarted(KEY)

    assert said(watching, names.ROLLOUT_RESTARTS, "r1", "2") == 2
    assert said(watching, names.ROLLOUT_RESTARTS, "r2", "3") == 0


def test_crashes_of_what_is_deployed_no_more_are_forgotten() -> None:
    watching, _ = observing(MADE)
    watching.restarted(KEY)
    del watching._store.deployments[KEY]
    watching.restarted(KEY)

    assert said(watching, names.ROLLOUT_RESTARTS, "r1", "2") == 0


@pytest.mark.parametrize(
    ("changes", "version", "failed"),
    [
        ({"failed_version": 2, "serving_version": None}, "2", True),
        ({"failed_version": 2, "serving_version": 1}, "2", True),
        ({"failed_version": 2, "serving_version": 1}, "1", False),
        ({"failed_version": 2, "serving_version": 2}, "2", False),
        ({"failed_version": 1, "serving_version": None}, "2", False),
        ({}, "2", False),
    ],
    ids=["first", "newest", "the one before", "served and crashed", "rolling out again", "serves"],
)
def test_only_a_version_that_was_given_up_before_it_served_has_failed(
    changes: dict[str, Any], version: str, failed: bool
) -> None:
    made = replace(MADE, serving_run_id="r1", **changes)
    watching, _ = observing(made)

    assert said(watching, names.ROLLOUT_FAILED, "r1", version) == failed
