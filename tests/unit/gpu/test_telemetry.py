"""The GPUs' figures as series."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gpu.devices import Card, Device, DeviceState, Problem, Snapshot
from gpu.telemetry import FRESH_SECONDS, GpuTelemetry, Lease
from metrics import names

MIB = 1024**2
DEVICE = Device(
    id="GPU-a",
    name="NVIDIA A100",
    memory_total_bytes=80_000 * MIB,
    memory_used_bytes=20_000 * MIB,
    memory_free_bytes=59_000 * MIB,
)
CARD = Card(
    id="GPU-a",
    index=3,
    name="NVIDIA A100",
    utilization=71,
    memory_utilization=12,
    power_milliwatts=251_500,
    temperature=64,
    xid=0,
)
SLICE = replace(
    DEVICE,
    id="MIG-1",
    name="NVIDIA A100 MIG 1g.10gb",
    memory_used_bytes=100 * MIB,
    parent="GPU-a",
    gpu_instance=7,
)

Series = dict[str, list[tuple[dict[str, str], float]]]


def shown(snapshot: Snapshot, leases: dict[str, Lease] | None = None) -> Series:
    """What Prometheus would store: empty labels are none."""
    registry = CollectorRegistry()
    telemetry = GpuTelemetry(registry, "box")
    telemetry.show(snapshot, leases or {})
    return {
        family.name: [
            ({key: value for key, value in sample.labels.items() if value}, sample.value)
            for sample in family.samples
        ]
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        if family.samples
    }


def snapshot(*devices: Device, cards: tuple[Card, ...] = (CARD,), **fields: object) -> Snapshot:
    return Snapshot(devices=devices, cards=cards, taken_at=0.0, **fields)  # type: ignore[arg-type]


def test_a_machine_without_a_gpu_shows_one_clear_zero() -> None:
    series = shown(snapshot(cards=(), problem=Problem.NO_LIBRARY))

    assert series == {names.GPU_AVAILABLE: [({}, 0.0)]}


def test_before_anything_was_read_there_is_the_same_zero() -> None:
    registry = CollectorRegistry()
    GpuTelemetry(registry)

    assert b"persephone_gpu_available 0.0\n" in generate_latest(registry)


def test_a_card_is_shown_under_the_names_and_labels_of_dcgm() -> None:
    series = shown(snapshot(DEVICE))
    labels = {
        "gpu": "3",
        "UUID": "GPU-a",
        "device": "nvidia3",
        "modelName": "NVIDIA A100",
        "Hostname": "box",
    }

    assert series == {
        names.GPU_AVAILABLE: [({}, 1)],
        names.GPU_HEALTHY: [(labels, 1)],
        names.DCGM_GPU_UTIL: [(labels, 71)],
        names.DCGM_MEM_COPY_UTIL: [(labels, 12)],
        names.DCGM_GPU_TEMP: [(labels, 64)],
        names.DCGM_POWER_USAGE: [(labels, 251.5)],
        names.DCGM_XID_ERRORS: [(labels, 0)],
        names.DCGM_FB_USED: [(labels, 20_000)],
        names.DCGM_FB_FREE: [(labels, 59_000)],
    }


def test_every_name_is_known() -> None:
    series = shown(snapshot(DEVICE), {"GPU-a": Lease("r1", "iris")})

    assert set(series) == set(names.GPU_METRICS)


def test_a_lease_joins_a_card_to_its_run() -> None:
    other = replace(DEVICE, id="GPU-b")
    series = shown(snapshot(DEVICE, other), {"GPU-a": Lease("r1", "iris"), "GPU-z": Lease("", "")})

    assert series[names.GPU_LEASE] == [({"UUID": "GPU-a", "run_id": "r1", "model": "iris"}, 1)]


def test_instances_have_their_own_memory_and_lease_and_the_heat_of_their_card() -> None:
    series = shown(snapshot(SLICE), {"MIG-1": Lease("r1", "iris")})
    own = {"GPU_I_ID": "7", "GPU_I_PROFILE": "1g.10gb"}

    (labels, used), (health, _) = series[names.DCGM_FB_USED][0], series[names.GPU_HEALTHY][0]
    assert (labels["UUID"], labels["gpu"], used) == ("GPU-a", "3", 100)
    assert own.items() <= labels.items()
    assert own.items() <= health.items()
    lease = {"UUID": "GPU-a", "GPU_I_ID": "7", "run_id": "r1", "model": "iris"}
    assert series[names.GPU_LEASE] == [(lease, 1)]
    (heat, _) = series[names.DCGM_GPU_TEMP][0]
    assert "GPU_I_ID" not in heat


def test_what_the_driver_does_not_tell_is_no_series() -> None:
    silent = Card(id="GPU-a", index=0, name="Old card")
    series = shown(snapshot(DEVICE, cards=(silent,)))

    assert set(series) == {
        names.GPU_AVAILABLE,
        names.GPU_HEALTHY,
        names.DCGM_FB_USED,
        names.DCGM_FB_FREE,
    }


@pytest.mark.parametrize(
    "state", [DeviceState.LOST, DeviceState.RESET_REQUIRED, DeviceState.UNREADABLE]
)
def test_a_lost_card_is_unhealthy_and_shows_its_last_error_but_no_old_figures(
    state: DeviceState,
) -> None:
    lost = replace(DEVICE, state=state)
    card = Card(id="GPU-a", index=3, name="NVIDIA A100", xid=79)
    series = shown(snapshot(lost, cards=(card,), problem=Problem.GPU_LOST))

    assert [value for _, value in series[names.GPU_HEALTHY]] == [0]
    assert [value for _, value in series[names.DCGM_XID_ERRORS]] == [79]
    assert set(series) == {names.GPU_AVAILABLE, names.GPU_HEALTHY, names.DCGM_XID_ERRORS}
    assert series[names.GPU_AVAILABLE] == [({}, 1)]


def test_a_card_that_comes_back_is_not_healthy_yet_but_measured() -> None:
    series = shown(snapshot(replace(DEVICE, state=DeviceState.RECOVERING)))

    assert [value for _, value in series[names.GPU_HEALTHY]] == [0]
    assert names.DCGM_FB_USED in series


def test_a_driver_that_hangs_is_not_available() -> None:
    series = shown(snapshot(DEVICE, problem=Problem.DRIVER_HANGS))

    assert series[names.GPU_AVAILABLE] == [({}, 0)]


def test_figures_that_are_old_are_left_out() -> None:
    fresh = shown(snapshot(DEVICE, age_seconds=FRESH_SECONDS))
    old = shown(snapshot(DEVICE, age_seconds=FRESH_SECONDS + 0.1))

    assert names.DCGM_GPU_UTIL in fresh
    assert set(old) == {names.GPU_AVAILABLE, names.GPU_HEALTHY}
