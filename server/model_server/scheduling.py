"""How one model's predictions are run: in the event loop or in threads, together or alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

INLINE_MS = 0.5
"""Predictions this quick are run in the event loop: a thread would cost more than they do."""
INLINE_GROWTH_MS = 2.0
"""How long one may take by its size before it goes to a thread after all."""
WHOLE_MACHINE_MS = 100.0
"""From here on one prediction gets all cores: its caller waits for it, not for a queue."""
MAX_ROWS = 64
MAX_TOGETHER_MS = 1000.0
"""What rows that are put together may take at most, even if that saves no time at all."""
_LEAST_GAIN = 1.3


@dataclass(frozen=True)
class Plan:
    """How predictions are run.

    ``workers`` predictions run at the same time, with ``framework_threads`` threads each. Up to
    ``max_rows`` rows of several requests are put together; 1 never does. Requests of at most
    ``inline_elements`` tensor elements are run in the event loop itself.
    """

    workers: int = 1
    framework_threads: int = 1
    max_rows: int = 1
    inline_elements: int = 0


def plan_of(
    passport: Mapping[str, Any], *, threads: int, is_concurrent: bool, is_bounded: bool
) -> Plan:
    """Choose from what the smoke test proved and measured.

    ``threads`` is the number of cores that the replica has. A runtime is concurrent if several
    threads may call it at once, and bounded if a prediction's time follows from its inputs'
    sizes alone. While nothing was measured, one thread runs one prediction at a time.
    """
    latency = float(passport.get("latency_ms", {}).get("p95", 0.0))
    if not latency:
        return Plan(framework_threads=1 if is_concurrent else threads)
    if not is_concurrent or latency > WHOLE_MACHINE_MS:
        workers, framework_threads = 1, threads
    else:
        workers, framework_threads = threads, 1
    batching = passport.get("batching", {})
    batches = bool(batching.get("equal")) and float(batching.get("gain", 0.0)) >= _LEAST_GAIN
    elements = 0
    if is_bounded and latency <= INLINE_MS:
        measured = max(1, int(passport.get("measured_elements", 1)))
        elements = int(measured * INLINE_GROWTH_MS / max(latency, 0.05))
    return Plan(
        workers=workers,
        framework_threads=framework_threads,
        max_rows=max(1, min(MAX_ROWS, int(MAX_TOGETHER_MS / latency))) if batches else 1,
        inline_elements=elements,
    )
