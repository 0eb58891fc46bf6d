"""What the rounds come to: medians, ratios within rounds, tables."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Row = dict[str, Any]
    Verdict = tuple[str, float, str, bool]

OURS = "persephone"
HEAD = (
    *("server", "format", "connections", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors"),
    *("CPU µs/request", "/ onnxruntime"),
)
STARTS_HEAD = ("server", "cold start s", "RSS MiB", "PSS MiB", "processes")
_FIGURES = ("rps", "p50_ms", "p95_ms", "p99_ms")


class Results:
    """The rows of all rounds, and what did not serve."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self._rows: list[Row] = saved["rows"]
        self.titles: dict[str, str] = saved["titles"]
        self.failures: list[Row] = saved["failures"]
        self.models: dict[str, float] = saved["models"]

    def of(
        self, server: str, model: str, form: str, connections: int, workers: int = 1
    ) -> list[Row]:
        """Return one row for each round, in the order of the rounds."""
        wanted = (server, model, form, connections, workers)
        names = ("server", "model", "form", "connections", "workers")
        rows = [row for row in self._rows if tuple(row[name] for name in names) == wanted]
        return sorted(rows, key=lambda row: int(row["round"]))

    def servers(self, model: str, workers: int) -> list[str]:
        """Return who was measured, the best at 16 connections first."""
        rates = {
            name: median(self.of(name, model, "JSON", 16, workers), "rps")
            for name in self.titles
            if self.of(name, model, "JSON", 16, workers)
        }
        return sorted(rates, key=lambda name: -rates[name])

    def table(self, model: str, workers: int = 1) -> list[tuple[Any, ...]]:
        """Return the medians of every load."""
        found = []
        for server in self.servers(model, workers):
            for form in ("JSON", "binary"):
                for connections in (1, 16, 64):
                    rows = self.of(server, model, form, connections, workers)
                    if rows:
                        found.append(self._line(server, form, connections, rows))
        return found

    def _line(self, server: str, form: str, connections: int, rows: list[Row]) -> tuple[Any, ...]:
        compared = statistics.median(row["rps"] / row["raw"]["one"] for row in rows)
        return (
            self.titles[server],
            form,
            connections,
            *(figure(median(rows, name)) for name in _FIGURES),
            sum(row["errors"] for row in rows),
            figure(median(rows, "cpu_us")),
            f"{compared:.4f}" if compared < 0.1 else f"{compared:.2f}",
        )

    def starts(self, model: str, workers: int = 1) -> list[tuple[Any, ...]]:
        """Return cold starts and memory."""
        found = []
        for server in self.servers(model, workers):
            rows = self.of(server, model, "JSON", 16, workers)
            named = ("cold_seconds", "rss_mib", "pss_mib")
            figures = (figure(median(rows, name)) for name in named)
            found.append((self.titles[server], *figures, int(median(rows, "processes"))))
        return found

    def ratio(
        self,
        name: Callable[[Row], float],
        ours: tuple[str, str, int],
        theirs: str,
    ) -> float | None:
        """Return the median over the rounds of our figure to theirs; None without theirs."""
        mine, others = self.of(OURS, *ours), self.of(theirs, *ours)
        by_round = {row["round"]: row for row in others}
        ratios = [
            name(row) / name(by_round[row["round"]]) for row in mine if row["round"] in by_round
        ]
        return statistics.median(ratios) if ratios else None

    def verdicts(self) -> list[Verdict]:
        """Return the ratios with their targets, and whether those are met."""
        found = [*self._small(16), *self._small(64), *self._larger(), *self._memory()]
        return [one for one in found if one is not None]

    def _small(self, connections: int) -> Iterator[Verdict | None]:
        at = ("small", "JSON", connections)
        said = f"small model, JSON, {connections} connections"
        for peer, target in (("aiohttp", 2.5), ("mlserver", 10.0), ("triton", 10.0)):
            title = self.titles.get(peer, peer)
            yield _at_least(f"{said}: requests/s / {title}", self.ratio(_rps, at, peer), target)
        yield _at_most(f"{said}: p95 / MLServer", self.ratio(_p95, at, "mlserver"), 0.25)

    def _larger(self) -> Iterator[Verdict | None]:
        rows = self.of(OURS, "larger", "binary", 16)
        said = "larger model, binary, 16 connections"
        if rows:
            ratio = statistics.median(row["rps"] / row["raw"]["all"] for row in rows)
            yield _at_least(f"{said}: requests/s / onnxruntime's calls/s on all cores", ratio, 0.9)
            ratio = statistics.median(row["cpu_us"] / row["raw"]["all_us"] for row in rows)
            yield _at_most(f"{said}: processor time / that of a call of onnxruntime", ratio, 1.05)

    def _memory(self) -> Iterator[Verdict | None]:
        for model, mib in self.models.items():
            rows = self.of(OURS, model, "JSON", 16)
            for kind in ("rss", "pss"):
                if rows:
                    above = (median(rows, f"{kind}_mib") - mib) * 2**20 / 90e6
                    name = f"{model} model: {kind.upper()} of a replica above the model / 90 MB"
                    yield _at_most(name, above, 1.0)


def _at_least(name: str, ratio: float | None, target: float) -> Verdict | None:
    return None if ratio is None else (name, ratio, f">= {target:.2f}", ratio >= target)


def _at_most(name: str, ratio: float | None, target: float) -> Verdict | None:
    return None if ratio is None else (name, ratio, f"<= {target:.2f}", ratio <= target)


def _rps(row: Row) -> float:
    return float(row["rps"])


def _p95(row: Row) -> float:
    return float(row["p95_ms"])


def median(rows: Sequence[Row], name: str) -> float:
    return float(statistics.median(row[name] for row in rows))


def figure(value: float) -> str:
    """Write a number with as many digits as say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
