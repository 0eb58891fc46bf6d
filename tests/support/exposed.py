"""Every series that the product exposes, read off what it really writes: names and their labels."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gpu.devices import Card, Device, Snapshot
from gpu.telemetry import GpuTelemetry, Lease
from metrics import names, rollouts
from metrics.instruments import InferenceInstruments
from metrics.objectives import Objective, exposition
from metrics.service import ServiceInstruments
from server.states import Action, Step

ENVIRONMENTS = ("dev", "stage", "prod")
ROUTES = ("/upload", "/runs", "/{env}/v2/models/{name}/infer")


def service_text() -> str:
    """The service's own metrics, each of which has been used."""
    service = ServiceInstruments(
        CollectorRegistry(),
        routes=ROUTES,
        environments=ENVIRONMENTS,
        steps=[step.value for step in Step],
        actions=[action.value for action in Action],
    )
    service.request("/upload", "POST", 201, 0.5)
    service.request("/{env}/v2/models/{name}/infer", "POST", 503, 0.1)
    service.stored("artifacts", 1)
    return service.text().decode()


def gpu_text() -> str:
    """The metrics of one leased GPU."""
    registry = CollectorRegistry()
    device = Device(
        id="GPU-1", name="T4", memory_total_bytes=9, memory_used_bytes=1, memory_free_bytes=8
    )
    card = Card(
        id="GPU-1",
        index=0,
        name="T4",
        utilization=1,
        memory_utilization=1,
        power_milliwatts=1,
        temperature=1,
        xid=0,
    )
    telemetry = GpuTelemetry(registry)
    telemetry.show(
        Snapshot(devices=(device,), cards=(card,), taken_at=0.0), {"GPU-1": Lease("r1", "iris")}
    )
    return generate_latest(registry).decode()


def replica_text() -> str:
    """The metrics of a replica that was used."""
    instruments = InferenceInstruments(
        None, framework="onnx", framework_version="1.20.1", digest="ab12", started_at=1.7e9
    )
    instruments.observe("2xx", 0.01)
    return instruments.text()


def gateway_text() -> str:
    """What the service says itself in the name of a deployment."""
    own = InferenceInstruments(None, started_at=1.7e9, probes=True).text()
    return own + exposition(Objective()) + rollouts.exposition(restarts=1, failed=False)


RUN_LABELS = frozenset({"run_id", "model", "environment"})
# Prometheus' own series of the alerts, with the labels of every alert.
_ALERTS = {"alertname", "alertstate", "severity", "window", *names.IDENTITY_LABELS}


def known_labels(name: str) -> set[str]:
    """The labels of a series: exposed, recorded by the rules, or of their alerts."""
    if name == "ALERTS":
        return set(_ALERTS)
    if name.startswith("run_environment_basis:"):
        return {"basis", *RUN_LABELS}
    return set(RUN_LABELS if name.startswith("run_environment:") else exposed()[name])


@cache
def exposed() -> dict[str, frozenset[str]]:
    """Return name of a series -> its labels as Prometheus stores them."""
    target = {"job", "instance"}
    found: dict[str, set[str]] = {"up": target | set(names.IDENTITY_LABELS)}
    for text, added in (
        (service_text(), target),
        (gpu_text(), target),
        (replica_text(), target | set(names.IDENTITY_LABELS)),
        (gateway_text(), target | set(names.IDENTITY_LABELS)),
    ):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels, added)
    return {name: frozenset(labels) for name, labels in found.items()}
