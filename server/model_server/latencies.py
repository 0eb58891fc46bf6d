"""Measures how long a model takes to answer: the smoke test's own input, and batches of rows."""

from __future__ import annotations

import logging
import time
from typing import Any, Dict, List, Mapping

import numpy as np

from server.model_server.batches import rows_of
from server.model_server.runtimes.base import Runtime, Signature

logger = logging.getLogger(__name__)

BATCHES = (1, 8, 32)
"""Rows in one call that are measured."""

_REPEATS = 30
_MEASURE_SECONDS = 0.5
_BATCH_SECONDS = 0.1
_LONGEST_CALL_SECONDS = 1.0
_MAX_ELEMENTS = 1 << 23
# The kernel ends a process that takes more memory than it may, and no exception tells before.
_ROOM_BYTES = 256 * 1024 * 1024

Inputs = Dict[str, Any]


def measure(
    runtime: Runtime, inputs: Mapping[str, Any], seconds: float = _MEASURE_SECONDS
) -> Dict[str, float]:
    """Repeat one inference; median and 95th percentile in milliseconds.

    After ``seconds`` no further one is begun.
    """
    durations: List[float] = []
    started = time.perf_counter()
    while len(durations) < _REPEATS:
        before = time.perf_counter()
        runtime.predict(inputs)
        after = time.perf_counter()
        durations.append((after - before) * 1000.0)
        if after - started > seconds:
            break
    return {
        "p50": round(float(np.percentile(durations, 50)), 4),
        "p95": round(float(np.percentile(durations, 95)), 4),
    }


def measure_batches(
    runtime: Runtime,
    signature: Signature,
    inputs: Mapping[str, Any],
    latency: Mapping[str, float],
    *,
    row_bytes: int = 0,
) -> List[Dict[str, float]]:
    """Measure calls with several times the first row of ``inputs``: ``rows``, ``p50``, ``p95``.

    ``latency`` is what was measured with ``inputs`` as they are, ``row_bytes`` by how much memory
    a row has made the process grow. There are none where the first dimensions are not free. A batch
    that would take longer than a second, is too large or is not answered ends the list: it tells
    about the model, and is no reason to fail it.
    """
    found: List[Dict[str, float]] = []
    given = rows_of(inputs)
    if not given or not all(spec.shape and spec.shape[0] == -1 for spec in signature.inputs):
        return found
    size = sum(array[:1].size for array in inputs.values())
    known = {"rows": given, **latency}
    for rows in BATCHES:
        if rows == given:
            found.append(known)
            continue
        expected = known["p50"] / 1000.0 * max(rows / known["rows"], 1.0)
        is_large = size * rows > _MAX_ELEMENTS or row_bytes * rows > _ROOM_BYTES
        if expected > _LONGEST_CALL_SECONDS or is_large:
            break
        many = {name: np.repeat(array[:1], rows, axis=0) for name, array in inputs.items()}
        try:
            # The first call of a size may still allocate, or choose its kernels.
            runtime.predict(many)
            known = {"rows": rows, **measure(runtime, many, _BATCH_SECONDS)}
        except Exception:
            logger.info("the model does not answer %d rows", rows, exc_info=True)
            break
        found.append(known)
    return found
