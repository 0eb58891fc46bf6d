"""Half an hour of a busy service, as a Prometheus that scraped it would have it on its disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest

from gpu.devices import Card, Device, DeviceState, Snapshot
from gpu.telemetry import GpuTelemetry, Lease
from metrics import names, rollouts
from metrics.instruments import InferenceInstruments
from metrics.objectives import Objective, exposition
from metrics.service import ServiceInstruments
from metrics.targets import Target
from server.states import Action, Phase, Step
from tests.support import prometheus_server
from tests.support.exposed import ENVIRONMENTS, ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BEGIN = 1_700_000_100.0
SECONDS = 1800
EVERY = 15
END = BEGIN + SECONDS
PASSES = 5
"""Rules that build on rules that build on rules and so on need so many."""

QUIET = ("tea", "milk", "beer")
"""Models that hardly anybody asks. The first is probed, and fails every third probe; the second is
not, and its replica is silent at every third scrape; the third one refuses a few requests, as its
replica is gone for the last third."""
_GONE = BEGIN + 2 * SECONDS / 3

_MIB = 1024**2


def openmetrics() -> Iterator[str]:
    """Every sample as a line with its time."""
    random = Random(11)
    replicas = [_Replica(random, *target) for target in _targets()]
    service, gpus = _Service(random), _Gpus()
    for step in range(SECONDS // EVERY + 1):
        at = BEGIN + step * EVERY
        for replica in replicas:
            if replica.serves(at):
                yield from _lines(replica.scraped(at), replica.labels, at)
        own = {"job": "persephone", "instance": "127.0.0.1:8000"}
        for text in (service.scraped(step), gpus.scraped(step)):
            yield from _lines(text, own, at)
    yield "# EOF"


def _targets() -> Iterator[tuple[Target, float, float]]:
    """Targets with the time of their life: one model has two versions, in dev of two runs."""
    middle = BEGIN + SECONDS / 2
    for model, environment in (("iris", "prod"), ("iris", "dev"), ("wine", "prod")):
        for replica in ("0", "1", names.GATEWAY_REPLICA):
            for version, lives in (("1", (BEGIN, middle)), ("2", (middle, END + 1))):
                is_old = model == "wine"
                if is_old and version == "2":
                    continue
                target = Target(
                    run_id=f"run-{model}" + "-next" * (version == "2" and environment == "dev"),
                    model=model,
                    environment=environment,
                    replica=replica,
                    version=version,
                )
                yield target, BEGIN if is_old else lives[0], END + 1 if is_old else lives[1]
    for model in QUIET:
        for replica in ("0", names.GATEWAY_REPLICA):
            target = Target(
                run_id=f"run-{model}", model=model, environment="dev", replica=replica, version="1"
            )
            yield target, BEGIN, END + 1


class _Replica:
    def __init__(self, random: Random, target: Target, begin: float, end: float) -> None:
        self._random = random
        self._target = target
        self._lives = begin, end
        self._is_gateway = target.is_gateway
        info = None if self._is_gateway else "onnx"
        self._instruments = InferenceInstruments(
            None,
            framework=info,
            framework_version="1.32.0",
            digest="ab12",
            started_at=begin,
            probes=self._is_gateway,
        )
        promised = Objective(availability=95.0, latency_seconds=0.03)
        said = exposition(promised) + rollouts.exposition(restarts=0, failed=False)
        self._promised = said if self._is_gateway else ""
        self.labels = {"job": names.MODELS_JOB, "instance": "127.0.0.1:8000", **target.labels}

    def serves(self, at: float) -> bool:
        return self._lives[0] <= at < self._lives[1]

    def scraped(self, at: float) -> str:
        model = self._target.model
        silent = {QUIET[1]: at % 45 == 0, QUIET[2]: at >= _GONE}
        if silent.get(model) and not self._is_gateway:
            return "up 0\n"
        text = self._instruments.text() + self._promised + "up 1\n"
        if model in QUIET:
            self._rest(at)
        else:
            self._work()
        return text

    def _rest(self, at: float) -> None:
        if not self._is_gateway:
            return
        if self._target.model == QUIET[0] and not at % 60:
            self._instruments.probe(passed=bool(at % 180))
        if self._target.model == QUIET[2] and at >= _GONE and not at % 30:
            self._instruments.observe("5xx", 0.0, overloaded=True)

    def _work(self) -> None:
        if self._is_gateway:
            self._instruments.probe(passed=self._random.random() > 0.1)
        for _ in range(self._random.randint(0, 1) if self._is_gateway else 40):
            failed = self._is_gateway or self._random.random() < 0.01
            code = "5xx" if failed else "4xx" if self._random.random() < 0.05 else "2xx"
            seconds = self._random.lognormvariate(-4, 0.5)
            self._instruments.observe(code, seconds, overloaded=self._is_gateway)


class _Service:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._instruments = ServiceInstruments(
            CollectorRegistry(),
            routes=ROUTES,
            environments=ENVIRONMENTS,
            steps=[step.value for step in Step],
            actions=[action.value for action in Action],
            refusals=("quota_runs",),
        )

    def scraped(self, step: int) -> str:
        text = self._instruments.text().decode() + "up 1\n"
        self._work(step)
        return text

    def _work(self, step: int) -> None:
        made, random = self._instruments, self._random
        for route in ROUTES:
            for _ in range(random.randint(1, 9)):
                made.request(route, "POST", 500 if random.random() < 0.1 else 200, random.random())
        made.upload("accepted")
        for one in Step:
            made.step(
                one, Phase.FAILED if random.random() < 0.2 else Phase.SUCCEEDED, random.random()
            )
        for action in Action:
            made.reconciled(action, random.random() / 10, ok=random.random() > 0.1)
        for environment in ENVIRONMENTS:
            made.deploy(environment, "succeeded")
            made.deployed(environment, random.uniform(1, 20))
            made.restart(environment)
        made.deployments({("prod", "Succeeded"): 2, ("dev", "Running"): 1})
        made.runs(step)
        made.gpus(3, 1)
        made.backend("embedded", up=True)
        for _ in range(8):
            made.scrape(random.random() / 100, ok=random.random() > 0.05)
        made.scrape_targets(9)
        made.refused("quota_runs")
        made.connections(3)
        made.disk(free_bytes=int(60e9), kept_bytes=int(2e9), stored_limit_bytes=int(40e9))
        made.stored("artifacts", step)


class _Gpus:
    """A whole GPU that a run holds, one that is lost, and one of which a run holds a part."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._telemetry = GpuTelemetry(self._registry, "box")

    def scraped(self, step: int) -> str:
        whole, lost = _device("GPU-a"), _device("GPU-b", state=DeviceState.LOST)
        part = _device("MIG-1", name="A100 MIG 1g.10gb", parent="GPU-c", gpu_instance=7)
        cards = (
            _card("GPU-a", 0, step),
            Card(id="GPU-b", index=1, name="A100", xid=79),
            _card("GPU-c", 2, step),
        )
        snapshot = Snapshot(devices=(whole, lost, part), cards=cards, taken_at=0.0)
        leases = {"GPU-a": Lease("run-iris", "iris"), "MIG-1": Lease("run-wine", "wine")}
        self._telemetry.show(snapshot, leases)
        alert = (
            'ALERTS{alertname="PersephoneErrorBudgetBurn",alertstate="firing",severity="page",'
            'environment="prod",model="iris",run_id="run-iris",window="1h"} 1\n'
        )
        return generate_latest(self._registry).decode() + alert


def _device(uuid: str, **fields: object) -> Device:
    values: dict[str, object] = {
        "name": "A100",
        "memory_total_bytes": 80_000 * _MIB,
        "memory_used_bytes": 20_000 * _MIB,
        "memory_free_bytes": 59_000 * _MIB,
        **fields,
    }
    return Device(id=uuid, **values)  # type: ignore[arg-type]


def _card(uuid: str, index: int, step: int) -> Card:
    return Card(
        id=uuid,
        index=index,
        name="A100",
        utilization=step % 100,
        memory_utilization=step % 50,
        power_milliwatts=200_000 + step,
        temperature=50 + step % 20,
        xid=0,
    )


def _lines(text: str, labels: dict[str, str], at: float) -> Iterator[str]:
    """An exposition's samples with the labels that a scrape adds, and their time."""
    added = ",".join(f'{name}="{value}"' for name, value in labels.items())
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, brace, own = series.partition("{")
            inside = f"{added},{own}" if brace else f"{added}}}"
            is_alert = name == "ALERTS"
            yield f"{series if is_alert else f'{name}{{{inside}'} {value} {at:.3f}"


def write(folder: Path, rules: Path) -> tuple[Path, Path]:
    """Write Prometheus' data, with all that a file of rules would have recorded; config and data."""
    samples, data, config = folder / "samples.txt", folder / "data", folder / "prometheus.yml"
    with samples.open("w") as file:
        file.writelines(f"{line}\n" for line in openmetrics())
    _succeed("tsdb", "create-blocks-from", "openmetrics", str(samples), str(data))
    samples.unlink()
    config.write_text("global: {}\n")
    # When rules are evaluated depends on the name of their file, as it is written: no path of this
    # checkout may be in it. What a pass recorded before all that it builds on was there goes again.
    recorded: set[Path] = set()
    for _ in range(PASSES):
        before = _blocks(data)
        with prometheus_server.running(config, data) as url:
            _succeed(
                *("tsdb", "create-blocks-from", "rules", f"--url={url}", f"--output-dir={data}"),
                *(f"--start={BEGIN:.0f}", f"--end={END:.0f}", str(rules.relative_to(ROOT))),
                folder=ROOT,
            )
        for block in recorded:
            shutil.rmtree(block)
        recorded = _blocks(data) - before
    return config, data


def _blocks(data: Path) -> set[Path]:
    return {meta.parent for meta in data.glob("*/meta.json")}


def _succeed(*arguments: str, folder: Path | None = None) -> None:
    done = prometheus_server.promtool(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
