"""The records of GPUs and their JSON form."""

from __future__ import annotations

import json

import pytest

from gpu.devices import Card, Device, DeviceState, Problem, Reading, Snapshot, from_json, to_json

CARD = Device(
    id="GPU-1",
    name="NVIDIA A100",
    memory_total_bytes=100,
    memory_used_bytes=10,
    memory_free_bytes=85,
    processes=(7, 8),
    utilization=None,
    state=DeviceState.LOST,
    parent="GPU-0",
)


def test_a_reading_survives_json_unchanged() -> None:
    card = Card(id="GPU-1", index=0, name="NVIDIA A100", temperature=40)
    reading = Reading(devices=(CARD,), cards=(card,), problem=Problem.GPU_LOST, driver="550")

    assert from_json(json.loads(json.dumps(to_json(reading)))) == reading


def test_a_reading_without_a_problem_survives_json_unchanged() -> None:
    assert from_json(json.loads(json.dumps(to_json(Reading())))) == Reading()


@pytest.mark.parametrize(
    "values",
    [{}, {"devices": [{}], "problem": None, "driver": ""}, {"devices": [], "problem": "sleepy"}],
)
def test_what_is_no_reading_is_refused(values: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(values)


def test_a_snapshot_finds_a_device_by_its_uuid() -> None:
    snapshot = Snapshot(devices=(CARD,), taken_at=0.0)

    assert snapshot.device("GPU-1") == CARD
    assert snapshot.device("GPU-2") is None
