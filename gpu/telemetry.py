"""The GPUs' figures for Prometheus, under the names that DCGM's exporter gives them."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import GaugeMetricFamily

from gpu.devices import Card, Device, DeviceState, Problem, Snapshot
from metrics import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

FRESH_SECONDS = 30.0
"""Figures older than this say nothing of now, and are left out."""

LABELS = ("gpu", "UUID", "device", "modelName", "Hostname", "GPU_I_ID", "GPU_I_PROFILE")
"""As DCGM's exporter has them; the last two are empty but for MIG instances."""
LEASE_LABELS = ("UUID", "GPU_I_ID", "run_id", "model")

_MEBIBYTE = 1024**2
_PROFILE = " MIG "


class Lease(NamedTuple):
    """The run that holds a device, and its model's name."""

    run_id: str
    model: str


class _Shown(NamedTuple):
    snapshot: Snapshot
    leases: Mapping[str, Lease]


class GpuTelemetry:
    """What was shown last, as series; on a machine without a GPU that is one zero.

    To be rendered in any thread.
    """

    def __init__(self, registry: CollectorRegistry, hostname: str | None = None) -> None:
        self._hostname = socket.gethostname() if hostname is None else hostname
        self._shown = _Shown(Snapshot(devices=(), taken_at=0.0), {})
        registry.register(self)

    def show(self, snapshot: Snapshot, leases: Mapping[str, Lease]) -> None:
        """Take what the driver said last; ``leases`` are by the devices' ids."""
        self._shown = _Shown(snapshot, leases)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, as a registry asks for them."""
        snapshot, leases = self._shown
        yield GaugeMetricFamily(
            names.GPU_AVAILABLE,
            "Whether the driver shows GPUs.",
            value=float(_is_available(snapshot)),
        )
        if not snapshot.devices:
            return
        cards = {card.id: card for card in snapshot.cards}
        units = [(device, cards.get(device.parent or device.id)) for device in snapshot.devices]
        yield _family(
            names.GPU_HEALTHY,
            "Whether a GPU can be worked with.",
            (
                (self._labels(device, card), float(device.state is DeviceState.HEALTHY))
                for device, card in units
            ),
        )
        yield _family(
            names.GPU_LEASE,
            "Which run holds a GPU; always 1.",
            (
                ((device.parent or device.id, _instance(device), *leases[device.id]), 1.0)
                for device, _ in units
                if device.id in leases
            ),
            LEASE_LABELS,
        )
        if snapshot.age_seconds <= FRESH_SECONDS:
            yield from self._figures(snapshot.cards, units)

    def _figures(
        self, cards: Iterable[Card], units: list[tuple[Device, Card | None]]
    ) -> Iterator[Metric]:
        of_cards: list[tuple[str, str, list[float | None]]] = [
            (names.DCGM_GPU_UTIL, "GPU utilization (in %).", [card.utilization for card in cards]),
            (
                names.DCGM_MEM_COPY_UTIL,
                "Memory utilization (in %).",
                [card.memory_utilization for card in cards],
            ),
            (names.DCGM_GPU_TEMP, "GPU temperature (in C).", [card.temperature for card in cards]),
            (names.DCGM_POWER_USAGE, "Power draw (in W).", [_watts(card) for card in cards]),
            (names.DCGM_XID_ERRORS, "Newest XID error; 0: none.", [card.xid for card in cards]),
        ]
        labels = [self._labels(None, card) for card in cards]
        for name, about, values in of_cards:
            yield _family(name, about, zip(labels, values, strict=True))
        readable = [unit for unit in units if unit[0].state in _READABLE]
        for name, about, attribute in (
            (names.DCGM_FB_USED, "Framebuffer memory used (in MiB).", "memory_used_bytes"),
            (names.DCGM_FB_FREE, "Framebuffer memory free (in MiB).", "memory_free_bytes"),
        ):
            yield _family(
                name,
                about,
                (
                    (self._labels(device, card), getattr(device, attribute) / _MEBIBYTE)
                    for device, card in readable
                ),
            )

    def _labels(self, device: Device | None, card: Card | None) -> tuple[str, ...]:
        number = "" if card is None else str(card.index)
        uuid = card.id if card is not None else (device.parent or device.id if device else "")
        name = card.name if card is not None else (device.name if device else "")
        instance = "" if device is None else _instance(device)
        profile = device.name.partition(_PROFILE)[2] if device is not None and instance else ""
        return (number, uuid, f"nvidia{number}", name, self._hostname, instance, profile)


_READABLE = frozenset({DeviceState.HEALTHY, DeviceState.RECOVERING})


def _is_available(snapshot: Snapshot) -> bool:
    return bool(snapshot.devices) and snapshot.problem in {None, Problem.GPU_LOST}


def _instance(device: Device) -> str:
    return "" if device.gpu_instance is None else str(device.gpu_instance)


def _watts(card: Card) -> float | None:
    return None if card.power_milliwatts is None else card.power_milliwatts / 1000


def _family(
    name: str,
    about: str,
    samples: Iterable[tuple[tuple[str, ...], float | None]],
    labels: tuple[str, ...] = LABELS,
) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family
