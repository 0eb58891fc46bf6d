"""Random histories of replicas: restarts, lost scrapes, late births, early deaths."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from metrics import names
from metrics.exposition import LAYOUT, ExpositionReader
from metrics.instruments import InferenceInstruments
from metrics.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN = 1_700_000_000.0
INTERVALS = (1.0, 2.0, 5.0, 15.0)
FAMILIES = {
    names.REQUESTS: "counter",
    names.OVERLOADED: "counter",
    names.PROBES: "counter",
    names.DURATION: "histogram",
}


@dataclass(kw_only=True)
class History:
    """One target and its scrapes: when, in whole milliseconds as seconds, and what came."""

    target: Target
    scrapes: list[tuple[float, str | None]] = field(default_factory=list)


def random_histories(
    seed: int, *, runs: int, seconds: float, environments: tuple[str, ...] = ("dev", "prod")
) -> list[History]:
    """Histories of some runs, each in some environments with one to three replicas."""
    random = Random(seed)
    histories = []
    for run in range(runs):
        interval = INTERVALS[run % len(INTERVALS)]
        for environment in environments[: random.randint(1, len(environments))]:
            replicas = [str(number) for number in range(random.randint(1, 3))]
            for replica in [*replicas, names.GATEWAY_REPLICA]:
                target = Target(
                    run_id=f"run-{run}",
                    model=f"model {run}",
                    environment=environment,
                    replica=replica,
                    version=str(random.randint(1, 3)),
                )
                histories.append(_history(random, target, interval, seconds))
    return histories


def openmetrics(histories: list[History]) -> Iterator[str]:
    """The same histories as lines that ``promtool tsdb create-blocks-from`` reads."""
    lines = [_Lines(history) for history in histories]
    for family, kind in FAMILIES.items():
        yield f"# TYPE {family.removesuffix('_total')} {kind}"
        for slot, series in enumerate(LAYOUT):
            if re.split("_bucket|{", series)[0] == family:
                for of in lines:
                    yield from of.counters(series, slot)
    yield f"# TYPE {names.IN_PROGRESS} gauge"
    for of in lines:
        yield from of.in_progress()
    yield "# TYPE up gauge"
    for of in lines:
        yield from of.up()
    yield "# EOF"


class _Lines:
    def __init__(self, history: History) -> None:
        self._history = history
        self._labels = _labels(history.target)
        reader = ExpositionReader(probes=history.target.is_gateway)
        self._scrapes = [
            (at, reader.read(text)) for at, text in history.scrapes if text is not None
        ]

    def counters(self, series: str, slot: int) -> Iterator[str]:
        name, _, own = series.removesuffix("}").partition("{")
        if name == names.PROBES and not self._history.target.is_gateway:
            return
        labels = ",".join(filter(None, (self._labels, own)))
        for at, scrape in self._scrapes:
            yield f"{name}{{{labels}}} {scrape.counters[slot]!r} {at:.3f}"

    def in_progress(self) -> Iterator[str]:
        for at, scrape in self._scrapes:
            yield f"{names.IN_PROGRESS}{{{self._labels}}} {scrape.in_progress!r} {at:.3f}"

    def up(self) -> Iterator[str]:
        for at, text in self._history.scrapes:
            yield f"up{{{self._labels}}} {0 if text is None else 1} {at:.3f}"


def _history(random: Random, target: Target, interval: float, seconds: float) -> History:
    history = History(target=target)
    shape = _Traffic(random)
    instruments = InferenceInstruments(None, probes=target.is_gateway)
    at = BEGIN + random.uniform(0, interval)
    end = BEGIN + seconds
    if random.random() < 0.4:
        at += random.uniform(0, seconds * 0.6)
    if random.random() < 0.3:
        end -= random.uniform(0, seconds * 0.4)
    if random.random() < 0.3:
        shape.observe(instruments, random.uniform(1, 100))
    while at < end:
        if random.random() < 0.01:
            instruments = InferenceInstruments(None, probes=target.is_gateway)
        if target.is_gateway:
            instruments.probe(passed=random.random() < 0.9)
        instruments.in_progress.value = random.randint(0, 9)
        lost = random.random() < 0.03
        history.scrapes.append((round(at, 3), None if lost else instruments.text()))
        shape.observe(instruments, interval)
        at += interval * random.uniform(0.98, 1.02)
    return history


class _Traffic:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._rps = random.choice((0.0, 0.1, 1.0, 7.0, 30.0))
        self._median = 10 ** random.uniform(-2.9, 0.6)
        self._sigma = random.choice((0.01, 0.2, 0.6))
        self._errors = random.choice((0.0, 0.01, 0.3))

    def observe(self, instruments: InferenceInstruments, seconds: float) -> None:
        random = self._random
        expected = self._rps * seconds
        for _ in range(max(round(random.gauss(expected, expected**0.5)), 0)):
            draw = random.random()
            code = "5xx" if draw < self._errors else "4xx" if draw > 0.95 else "2xx"
            overloaded = code == "5xx" and random.random() < 0.4
            seconds = self._median * random.lognormvariate(0, self._sigma)
            instruments.observe(code, seconds, overloaded=overloaded)


def _labels(target: Target) -> str:
    labels = {"job": names.MODELS_JOB, **target.labels}
    return ",".join(f'{key}="{value}"' for key, value in labels.items())
