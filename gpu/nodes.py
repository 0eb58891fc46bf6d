"""The device nodes of one GPU: what a process needs to compute on it and on no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu.devices import Device

CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
"""Nodes that every GPU program opens; they belong to no one card."""

MIG_MINORS = Path("/proc/driver/nvidia-caps/mig-minors")
"""Where the driver says which node stands for the right to use a MIG instance."""

_LINE = re.compile(r"gpu(\d+)/gi(\d+)(?:/ci(\d+))?/access (\d+)")


def device_nodes(device: Device, mig_minors: str = "") -> tuple[str, ...]:
    """Return the paths of a device's nodes; only the control nodes if the driver hides its number.

    ``mig_minors`` is the text of ``MIG_MINORS``.
    """
    nodes = [f"/dev/{name}" for name in CONTROL]
    if device.minor is not None:
        nodes.append(f"/dev/nvidia{device.minor}")
        nodes += _capabilities(device, mig_minors)
    return tuple(nodes)


def _capabilities(device: Device, mig_minors: str) -> list[str]:
    """Return the nodes of a MIG instance: one for its slice of the GPU, one for its share of that."""
    if device.gpu_instance is None:
        return []
    wanted = {
        (device.minor, device.gpu_instance, None),
        (device.minor, device.gpu_instance, device.compute_instance),
    }
    found = []
    for line in mig_minors.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is not None:
            gpu, instance, share, minor = match.groups()
            if (int(gpu), int(instance), None if share is None else int(share)) in wanted:
                found.append(f"/dev/nvidia-caps/nvidia-cap{minor}")
    return found
