"""A month of the embedded monitor's history: its memory, its file, what saving and reading cost.

Simulated: busy replicas with thirty requests a second of a lognormal duration all the time, and
idle ones, scraped once a minute. The newest minutes, which hold every scrape, are as they
are with a scrape every two seconds.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from array import array
from itertools import accumulate
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from common import run, say, scratch, table, verdict

from metrics.embedded import EmbeddedMonitor
from metrics.exposition import BUCKETS_FROM
from metrics.names import LATENCY_BOUNDS
from metrics.reading import Question, Reading
from metrics.targets import Target
from server.store.history import HistoryFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from metrics.history import History

BUSY, IDLE = (int(word) for word in (*sys.argv[1:], "2", "5")[:2])
DAYS = 30
RPS = 30
COARSE, FINE = 60, 2
NEWEST_SECONDS = 400
SAVE_SECONDS = 3600
BEGIN = 1_700_000_000
WINDOWS = {"1 min": 60, "5 min": 300, "1 h": 3600, "6 h": 21_600, "3 d": 259_200, "30 d": 2_592_000}


class Replica:
    """Counts as a replica would, many requests at a time."""

    def __init__(self, random: np.random.Generator, shares: np.ndarray[Any, Any] | None) -> None:
        self._random = random
        self._shares = shares
        self._buckets = np.zeros(len(LATENCY_BOUNDS) + 1)
        self._vector = self._made()

    def _made(self) -> array[float]:
        total = float(self._buckets.sum())
        counters = [total * 0.97, total * 0.02, total * 0.01, *([0.0] * (BUCKETS_FROM - 3))]
        counters = [float(int(value)) for value in counters]
        return array("d", [*counters, *map(float, accumulate(self._buckets.tolist()))])

    def vector(self, seconds: int) -> array[float]:
        if self._shares is not None:
            self._buckets += self._random.multinomial(RPS * seconds, self._shares)
            self._vector = self._made()
        return self._vector


def shares(random: np.random.Generator) -> np.ndarray[Any, Any]:
    durations = random.lognormal(-4, 0.3, 200_000)
    places = np.searchsorted(np.array(LATENCY_BOUNDS), durations)
    counts = np.bincount(places, minlength=len(LATENCY_BOUNDS) + 1)
    return counts / counts.sum()


def target(number: int) -> Target:
    return Target(run_id=f"{number:032x}", model="m", environment="prod", replica="0", version="1")


class Month:
    """A monitor that lived for a month, and its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.monitor = EmbeddedMonitor()
        self.file = HistoryFile(self.monitor, path)
        self.file.open()
        self.end = 0
        self.gathering: list[float] = []

    def live(self) -> None:
        random = np.random.default_rng(7)
        replicas = [Replica(random, shares(random)) for _ in range(BUSY)]
        replicas += [Replica(random, None) for _ in range(IDLE)]
        histories: list[History] = []
        for number in range(len(replicas)):
            history = self.monitor.new_history()
            self.monitor.resume(target(number), history)
            histories.append(history)
        self.end = DAYS * 86_400
        at = 0
        while at < self.end:
            seconds = COARSE if at < self.end - NEWEST_SECONDS else FINE
            at += seconds
            for replica, history in zip(replicas, histories, strict=True):
                history.add((BEGIN + at) * 1000, replica.vector(seconds))
            if at % SAVE_SECONDS == 0:
                for history in histories:
                    history.expire((BEGIN + at) * 1000)
                self.save()

    def save(self) -> None:
        parts = self.file.unsaved()
        while True:
            # What the service does on its event loop; the rest is another thread's.
            began = time.perf_counter()
            changes = next(parts, None)
            self.gathering.append(1000 * (time.perf_counter() - began))
            if changes is None:
                return
            self.file.save(changes)

    def usual_saves(self) -> list[float]:
        """Save as the service does, every five seconds; how long each takes."""
        histories = [watched.history for _, watched in self.monitor.watched()]
        taken = []
        self.gathering.clear()
        for number in range(12):
            at = (BEGIN + self.end + 5 * (number + 1)) * 1000
            for history in histories:
                history.add(at, history.newest().raw)
            began = time.perf_counter()
            self.save()
            taken.append(1000 * (time.perf_counter() - began))
        self.end += 60
        return taken


def read(monitor: EmbeddedMonitor, number: int, seconds: float, end: float) -> Reading:
    question = Question(seconds=seconds, quantiles=(0.95,), bound=0.05, health=True)
    return monitor.read(target(number).run_id, question, BEGIN + end)


def timed(work: Callable[[], Any], times: int = 9) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    return median(taken)


def opened(path: Path) -> EmbeddedMonitor:
    """A monitor that goes on from the file, as after a start."""
    monitor = EmbeddedMonitor()
    file = HistoryFile(monitor, path)
    file.open()
    file.close()
    return monitor


def sizes(monitor: EmbeddedMonitor) -> tuple[float, float]:
    """KiB of a busy and of an idle replica, as the monitor counts them."""
    held = {one: watched.history.size / 1024 for one, watched in monitor.watched()}
    busy = [held[target(number)] for number in range(BUSY)]
    return median(busy), median(held[target(number)] for number in range(BUSY, BUSY + IDLE))


async def main() -> None:
    with scratch() as folder:
        began = time.perf_counter()
        month = Month(folder / "history.db")
        month.live()
        say(f"lived through {DAYS} days in {time.perf_counter() - began:.0f} s")
        saves = month.usual_saves()
        kept = {one.name: one.stat().st_size / 1024 for one in folder.glob("history.db*")}
        opening = timed(lambda: opened(month.path))
        gc.collect()
        tracemalloc.start()
        again = opened(month.path)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] / 1024
        tracemalloc.stop()
        busy, idle = sizes(month.monitor)
        blocks, _ = sizes(again)
        rows: list[tuple[str, float]] = [
            ("busy replica, KiB in memory", busy),
            ("of that the newest minutes, each scrape", busy - blocks),
            ("idle replica, KiB in memory", idle),
            (f"{BUSY} busy and {IDLE} idle, KiB on the disk", kept["history.db"]),
            ("and in its log of writes", kept["history.db-wal"]),
            (f"{BUSY} busy and {IDLE} idle, KiB after a start (tracemalloc)", held),
            ("start with that file, ms", opening),
            ("a save every five seconds, ms (median)", median(saves)),
            ("a save every five seconds, ms (longest)", max(saves)),
            ("of that on the event loop at a time, ms (longest)", max(month.gathering)),
        ]
        for name, seconds in WINDOWS.items():
            reading = timed(lambda seconds=seconds: read(month.monitor, 0, seconds, month.end))
            rows.append((f"reading {name} of a busy replica, ms", reading))
        table(("figure", "value"), rows)
        whole = read(month.monitor, 0, WINDOWS["30 d"], month.end)
        lost = abs((whole.requests or 0) / (RPS * (DAYS * 86_400 - 60)) - 1)
        say(f"requests of 30 days: {whole.requests:,.0f}, {100 * lost:.3f} % off")
        verdict("busy replica, MiB in memory", busy / 1024, "<= 1.50", met=busy <= 1536)
        month.file.close()


if __name__ == "__main__":
    run(main)
