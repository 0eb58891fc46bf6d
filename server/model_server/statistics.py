"""What a replica counts for ``GET /v2/models/{name}/stats``.

The fields are those of Triton's statistics extension; times are in nanoseconds.
"""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional, Protocol, Sequence


class _Timed(Protocol):
    rows: int
    came: float
    started: float


class Statistics:
    """Counts requests, executions of the model and the rows of each. One thread only."""

    def __init__(self) -> None:
        self._success = [0, 0.0]
        self._fail = [0, 0.0]
        self._queue = [0, 0.0]
        self._infer = [0, 0.0]
        self._input = [0, 0.0]
        self._output = [0, 0.0]
        self._rows = 0
        self._executions: Dict[int, List[float]] = {}
        self._last = 0.0

    def executed(self, group: Sequence[_Timed], seconds: float) -> None:
        """Count one call of the model for the requests of a group."""
        rows = 0
        queue = self._queue
        for job in group:
            rows += job.rows or 1
            queue[0] += 1
            queue[1] += job.started - job.came
        infer = self._infer
        infer[0] += len(group)
        infer[1] += seconds * len(group)
        found = self._executions.get(rows)
        if found is None:
            found = self._executions[rows] = [0, 0.0]
        found[0] += 1
        found[1] += seconds
        self._rows += rows
        self._last = time.time()

    def ended(self, job: _Timed, error: Optional[Exception]) -> None:
        """Count one request by how it ended."""
        outcome = self._success if error is None else self._fail
        outcome[0] += 1
        outcome[1] += time.perf_counter() - job.came

    def read(self, seconds: float) -> None:
        """Count the time in which one request's tensors were read."""
        self._input[0] += 1
        self._input[1] += seconds

    def written(self, seconds: float) -> None:
        """Count the time in which one answer was written."""
        self._output[0] += 1
        self._output[1] += seconds

    def described(self, name: str, version: str) -> Dict[str, Any]:
        """Write them as the protocol does."""
        executions = sorted(self._executions.items())
        return {
            "model_stats": [
                {
                    "name": name,
                    "version": version,
                    "last_inference": int(self._last * 1000),
                    "inference_count": self._rows,
                    "execution_count": int(sum(found[0] for _rows, found in executions)),
                    "inference_stats": {
                        "success": _pair(self._success),
                        "fail": _pair(self._fail),
                        "queue": _pair(self._queue),
                        "compute_input": _pair(self._input),
                        "compute_infer": _pair(self._infer),
                        "compute_output": _pair(self._output),
                        "cache_hit": _pair([0, 0]),
                        "cache_miss": _pair([0, 0]),
                    },
                    "batch_stats": [
                        {"batch_size": rows, "compute_infer": _pair(found)}
                        for rows, found in executions
                    ],
                }
            ]
        }


def _pair(counted: Sequence[float]) -> Dict[str, int]:
    count, seconds = counted
    return {"count": int(count), "ns": int(seconds * 1e9)}
