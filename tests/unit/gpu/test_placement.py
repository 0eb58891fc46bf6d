"""Which GPU is free, which is best, and why another is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.devices import Device, DeviceState, Problem, Snapshot
from gpu.placement import free_devices, reason_params, why_not_free

GIB = 1024**3
MIB = 1024**2


def card(gpu_id: str = "GPU-1", *, total: int = 80 * GIB, used: int = 0, **more: Any) -> Device:
    return Device(
        id=gpu_id,
        name="NVIDIA A100",
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory_free_bytes=more.pop("free", total - used),
        **more,
    )


def snapshot(*devices: Device, problem: Problem | None = None) -> Snapshot:
    return Snapshot(devices=devices, taken_at=0.0, problem=problem)


def test_an_idle_device_is_free() -> None:
    assert why_not_free(card(), {}) is None


@pytest.mark.parametrize("used", [300 * MIB, 700 * MIB, GIB])
def test_a_few_hundred_megabytes_in_use_are_still_free(used: int) -> None:
    assert why_not_free(card(used=used), {}) is None


@pytest.mark.parametrize(
    ("device", "code"),
    [
        (card(used=2 * GIB), "gpu_memory_in_use"),
        (card(processes=(41,)), "gpu_busy"),
        (card(processes=(41, 42)), "gpu_busy"),
        (card(state=DeviceState.LOST), "gpu_unhealthy"),
        (card(state=DeviceState.RECOVERING), "gpu_unhealthy"),
        (card(state=DeviceState.UNREADABLE), "gpu_unhealthy"),
        (card("GPU-taken"), "gpu_taken"),
        (card(total=4 * GIB), "gpu_memory_insufficient"),
    ],
)
def test_a_device_that_is_not_free_says_why(device: Device, code: str) -> None:
    reason = why_not_free(device, {"GPU-taken": "run-a"}, own_pids={42}, need_bytes=5 * GIB)

    assert reason == code


def test_our_own_process_that_is_still_leaving_does_not_make_a_device_busy() -> None:
    assert why_not_free(card(processes=(42,)), {}, own_pids={42}) is None


def test_load_alone_is_no_reason() -> None:
    assert why_not_free(card(utilization=100), {}) is None


def test_on_a_small_device_less_memory_in_use_counts_as_in_use() -> None:
    assert why_not_free(card(total=2 * GIB, used=600 * MIB), {}) == "gpu_memory_in_use"
    assert why_not_free(card(total=2 * GIB, used=400 * MIB), {}) is None


def test_the_drivers_reserve_is_not_free_memory() -> None:
    device = card(total=8 * GIB, free=7 * GIB)

    assert why_not_free(device, {}, need_bytes=7 * GIB) is None
    assert why_not_free(device, {}, need_bytes=7 * GIB + 1) == "gpu_memory_insufficient"


def test_a_run_may_take_its_own_device_again_with_its_model_on_it() -> None:
    device = card(used=30 * GIB, processes=(42,))

    assert why_not_free(device, {"GPU-1": "run-a"}, run_id="run-a") is None
    assert why_not_free(device, {"GPU-1": "run-a"}, run_id="run-b") == "gpu_taken"
    too_much = why_not_free(device, {"GPU-1": "run-a"}, need_bytes=51 * GIB, run_id="run-a")
    assert too_much == "gpu_memory_insufficient"


def test_a_run_may_not_take_its_own_device_when_it_is_lost() -> None:
    device = card(state=DeviceState.LOST)

    assert why_not_free(device, {"GPU-1": "run-a"}, run_id="run-a") == "gpu_unhealthy"


def test_the_device_with_the_most_free_memory_comes_first() -> None:
    small, large, busy = card("s", total=16 * GIB), card("l"), card("b", utilization=90)
    lost = card("x", state=DeviceState.LOST)

    assert free_devices(snapshot(small, busy, lost, large), {}) == [large, busy, small]


def test_equal_devices_keep_the_drivers_order() -> None:
    first, second = card("z"), card("a")

    assert free_devices(snapshot(first, second), {}) == [first, second]


def test_the_parameters_of_a_reason_are_whole_mebibytes() -> None:
    params = reason_params(card(total=2 * GIB, used=MIB), need_bytes=MIB + 1)

    assert params == {"gpu": "NVIDIA A100", "used": 1, "free": 2047, "need": 2}


DEVICES = st.builds(
    card,
    st.uuids().map(str),
    total=st.integers(1, 100 * GIB),
    free=st.integers(0, 100 * GIB),
    used=st.integers(0, 100 * GIB),
    processes=st.lists(st.integers(1, 50), max_size=3).map(tuple),
    utilization=st.none() | st.integers(0, 100),
    state=st.sampled_from(DeviceState),
)


@given(st.lists(DEVICES, max_size=6), st.data(), st.integers(0, 100 * GIB))
def test_every_device_is_either_offered_or_has_a_reason(
    devices: list[Device], data: st.DataObject, need: int
) -> None:
    held = data.draw(st.lists(st.sampled_from(devices), max_size=3)) if devices else []
    leased = {device.id: "run-a" for device in held}

    offered = free_devices(snapshot(*devices), leased, (), need)

    for device in devices:
        assert (device in offered) is (why_not_free(device, leased, (), need) is None)
        if device in offered:
            assert device.id not in leased
            assert device.state is DeviceState.HEALTHY
            assert device.memory_free_bytes >= need
    room = [device.memory_free_bytes for device in offered]
    assert room == sorted(room, reverse=True)
