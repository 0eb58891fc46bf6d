"""Which device nodes belong to a GPU: its own and no other's."""

from __future__ import annotations

from gpu.devices import Device
from gpu.nodes import device_nodes

CONTROL = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
MINORS = """config 1
monitor 2
gpu3/gi1/access 12
gpu3/gi1/ci0/access 13
gpu3/gi2/access 21
gpu3/gi2/ci0/access 22
gpu3/gi2/ci1/access 23
gpu30/gi2/access 210
"""


def device(**more: int) -> Device:
    return Device(
        id="GPU-1",
        name="A card",
        memory_total_bytes=1,
        memory_used_bytes=0,
        memory_free_bytes=1,
        **more,
    )


def test_a_gpu_has_the_node_of_its_minor_number() -> None:
    assert device_nodes(device(minor=3), MINORS) == (*CONTROL, "/dev/nvidia3")


def test_a_mig_instance_has_the_node_of_its_gpu_and_its_own_two_rights() -> None:
    nodes = device_nodes(device(minor=3, gpu_instance=2, compute_instance=0), MINORS)

    caps = ("/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22")
    assert nodes == (*CONTROL, "/dev/nvidia3", *caps)


def test_a_gpu_whose_number_the_driver_hides_gets_no_card_at_all() -> None:
    assert device_nodes(device(), MINORS) == CONTROL


def test_a_mig_instance_of_a_driver_without_the_list_gets_no_rights() -> None:
    nodes = device_nodes(device(minor=0, gpu_instance=1, compute_instance=0), "")

    assert nodes == (*CONTROL, "/dev/nvidia0")
