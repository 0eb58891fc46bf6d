"""The rounds: every server started afresh, loaded, ended, one after the other."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.common import say
from benchmarks.serving.loads import body_of, load
from benchmarks.serving.servers import NotServingError, raw_calls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.serving.loads import Model
    from benchmarks.serving.servers import Ours, Peer, Running

CONNECTIONS = (1, 16, 64)
WARM_SECONDS = 1
RAW_SECONDS = 1.0
CORES = os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """onnxruntime alone: calls per second in one thread and in as many as cores; µs of one call."""

    one: float
    one_us: float
    all: float
    all_us: float


class Measuring:
    """Collects a row for every load of every server in every round."""

    def __init__(self, python: Path, folder: Path, seconds: int) -> None:
        self._python = python
        self._folder = folder
        self._seconds = seconds
        self.rows: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []

    async def round(
        self, number: int, model: Model, servers: Sequence[Ours | Peer], workers: int = 1
    ) -> None:
        """Measure every server once; back and forth, so that none always follows the same one."""
        for server in servers if number % 2 else servers[::-1]:
            if self._has_failed(model, server, workers):
                continue
            known = {"model": model.name, "server": server.name, "workers": workers}
            say(f"round {number}, {model.name} model, {server.title}, {workers} worker(s)")
            raw = self._raw(model)
            try:
                async with server.serve(model, self._folder, workers) as running:
                    await self._loads(server, model, running, raw, {**known, "round": number})
            except NotServingError as error:
                say(f"  does not serve: {error}")
                self.failures.append({**known, "why": str(error)})

    async def _loads(
        self,
        server: Ours | Peer,
        model: Model,
        running: Running,
        raw: Raw,
        known: dict[str, Any],
    ) -> None:
        new: list[dict[str, Any]] = []
        for form in server.forms:
            body = body_of(model, form)
            at = (running.url, body, running.pid, self._folder)
            await load(*at, connections=16, seconds=WARM_SECONDS)
            for connections in CONNECTIONS if known["workers"] == 1 else CONNECTIONS[1:]:
                # What is held against onnxruntime itself is measured between two runs of that.
                is_held = server.name == "persephone" and connections == 16
                before = self._raw(model) if is_held else raw
                found = await load(*at, connections=connections, seconds=self._seconds)
                after = self._raw(model) if is_held else raw
                compared = {
                    key: (value + asdict(after)[key]) / 2 for key, value in asdict(before).items()
                }
                row = {
                    **known,
                    "form": "binary" if form == "binary" else "JSON",
                    "connections": connections,
                    **asdict(found),
                    "raw": compared,
                    "cold_seconds": running.cold_seconds,
                    "load_average": os.getloadavg()[0],
                }
                new.append(row)
                say(
                    f"  {row['form']:6} {connections:3} connections: {found.rps:8,.0f} requests/s,"
                    f" p95 {found.p95_ms:.2f} ms, {found.cpu_us:,.0f} µs, {found.errors} errors"
                )
        resident, proportional, processes = running.memory_mib()
        for row in new:
            row |= {"rss_mib": resident, "pss_mib": proportional, "processes": processes}
        self.rows += new

    def _raw(self, model: Model) -> Raw:
        one = raw_calls(self._python, model, 1, RAW_SECONDS)
        # More threads than one do not help a call that takes microseconds.
        every = raw_calls(self._python, model, CORES, RAW_SECONDS) if model.name != "small" else one
        return Raw(one=one[0], one_us=one[1], all=every[0], all_us=every[1])

    def _has_failed(self, model: Model, server: Ours | Peer, workers: int) -> bool:
        return any(
            (failed["model"], failed["server"], failed["workers"])
            == (model.name, server.name, workers)
            for failed in self.failures
        )
