"""The JSON shapes of the contract, checked as the page's client would rely on them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from metrics.slo import DATA_STATUSES

if TYPE_CHECKING:
    from collections.abc import Mapping

PHASES = {"Pending", "Running", "Succeeded", "Failed"}
STEPS = ["integrity", "inspection", "device", "environment", "load", "smoke-test", "passport"]
RUN_ID = re.compile(r"[0-9a-f]{32}")
CODE = re.compile(r"[a-z][a-z0-9_]+")
CYRILLIC = re.compile(r"[а-яё]", re.IGNORECASE)
LONGEST_TEXT = 600


def assert_no_null(value: Any) -> None:
    """Optional fields are left out, never null."""
    if isinstance(value, dict):
        for name, inner in value.items():
            assert inner is not None, name
            assert_no_null(inner)
    if isinstance(value, list):
        for inner in value:
            assert_no_null(inner)


def assert_text(text: Any) -> None:
    """A sentence for people: short, no path, no traceback."""
    assert isinstance(text, str)
    assert 3 < len(text) <= LONGEST_TEXT
    assert "Traceback" not in text
    assert not re.search(r"(?:^|\s)/(?:tmp|home|usr|proc|var|etc)/", text), text


def assert_time(text: Any) -> datetime:
    """ISO 8601, in UTC."""
    at = datetime.fromisoformat(text)
    assert at.utcoffset() == timedelta(0)
    return at


def assert_error(body: Mapping[str, Any], language: str | None = None) -> None:
    """The body of every error."""
    assert_no_null(body)
    assert_text(body["message"])
    assert CODE.fullmatch(body["code"]), body
    assert body["requestId"]
    if language is not None:
        assert bool(CYRILLIC.search(body["message"])) == (language == "ru"), body


def assert_prepare_status(body: Mapping[str, Any], run_id: str) -> None:
    """``PrepareStatusResponse``."""
    assert_no_null(body)
    assert body["runId"] == run_id
    assert body["phase"] in PHASES
    assert [step["name"] for step in body["steps"]] == STEPS
    for step in body["steps"]:
        assert step["status"] in PHASES
        if "message" in step:
            assert_text(step["message"])
        if step["status"] in {"Succeeded", "Failed"}:
            assert_time(step["completedAt"])
        else:
            assert "completedAt" not in step
    if body["phase"] != "Pending":
        assert_time(body["updatedAt"])


def assert_deploy_status(body: Mapping[str, Any], run_id: str, environment: str) -> None:
    """``DeployStatusResponse``."""
    assert_no_null(body)
    assert (body["runId"], body["environment"]) == (run_id, environment)
    assert body["phase"] in PHASES
    if "message" in body:
        assert_text(body["message"])
    if "version" in body:
        assert re.fullmatch(r"[1-9]\d*", body["version"])
    for name in {"startedAt", "updatedAt"} & set(body):
        assert_time(body[name])


def assert_gpu_options(body: Any) -> None:
    """``GpuOption[]``."""
    assert isinstance(body, list)
    for option in body:
        assert_no_null(option)
        assert isinstance(option["id"], str)
        assert isinstance(option["name"], str)
        assert isinstance(option.get("memoryGb", 1.0), int | float)
        assert isinstance(option.get("provider", ""), str)
        assert isinstance(option.get("region", ""), str)


def assert_summary(body: Mapping[str, Any], run_id: str) -> None:
    """``MonitorSummaryResponse``: five finite figures, always."""
    assert_no_null(body)
    assert body["runId"] == run_id
    red, slo = body["red"], body["slo"]
    figures = [red["rps"], red["errorsPercent"], red["p95DurationMs"]]
    figures += [slo["availability"], slo["latencyP95Ms"]]
    for figure in figures:
        assert type(figure) in {int, float}
        assert 0 <= figure < 1e12
    assert red["errorsPercent"] <= 100
    assert slo["availability"] <= 100
    assert body["dataStatus"] in DATA_STATUSES
    for replica in body.get("unreachable", ()):
        assert set(replica) == {"environment", "replica", "version"}
    assert_time(body["updatedAt"])
