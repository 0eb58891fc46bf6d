"""Latencies of a passport: bounded in time and size, and no reason to fail a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from server.model_server.latencies import measure, measure_batches
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROWS = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
FIXED = Signature((TensorSpec("x", "FP32", (1, 2)),), (TensorSpec("y", "FP32", (1, 2)),))
QUICK = {"p50": 0.1, "p95": 0.2}


class Echo(Runtime):
    """Answers its input, up to so many rows."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.calls: list[int] = []

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        raise NotImplementedError

    def predict(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        del outputs
        self.calls.append(len(inputs["x"]))
        if len(inputs["x"]) > self.most:
            raise MemoryError
        return {"y": inputs["x"]}


def rows(count: int, width: int = 2) -> dict[str, Any]:
    return {"x": np.ones((count, width), dtype=np.float32)}


def test_a_latency_is_that_of_thirty_calls_or_of_the_time_there_is() -> None:
    runtime = Echo()
    found = measure(runtime, rows(1))
    assert 0 <= found["p50"] <= found["p95"]
    assert len(runtime.calls) == 30
    measure(runtime, rows(1), seconds=0.0)
    assert len(runtime.calls) == 31


def test_batches_that_would_take_much_memory_are_left_out() -> None:
    found = measure_batches(Echo(), ROWS, rows(1), QUICK, row_bytes=20 * 1024**2)
    assert [batch["rows"] for batch in found] == [1, 8]


def test_batches_repeat_the_first_row_and_one_row_is_not_measured_twice() -> None:
    runtime = Echo()
    found = measure_batches(runtime, ROWS, rows(1), QUICK)
    assert [batch["rows"] for batch in found] == [1, 8, 32]
    assert found[0] == {"rows": 1, **QUICK}
    assert set(runtime.calls) == {8, 32}
    assert [batch["rows"] for batch in measure_batches(Echo(), ROWS, rows(5), QUICK)] == [1, 8, 32]


@pytest.mark.parametrize(
    ("signature", "inputs", "latency", "most", "measured"),
    [
        (FIXED, rows(1), QUICK, 1000, []),
        (ROWS, rows(0), QUICK, 1000, []),
        (ROWS, rows(1), {"p50": 200.0, "p95": 200.0}, 1000, [1]),
        (ROWS, rows(2), {"p50": 5000.0, "p95": 5000.0}, 1000, []),
        (ROWS, rows(1, 500_000), QUICK, 1000, [1, 8]),
        (ROWS, rows(1), QUICK, 8, [1, 8]),
    ],
)
def test_what_is_fixed_slow_large_or_fails_ends_the_list(
    signature: Signature,
    inputs: dict[str, Any],
    latency: dict[str, float],
    most: int,
    measured: list[int],
) -> None:
    found = measure_batches(Echo(most), signature, inputs, latency)
    assert [batch["rows"] for batch in found] == measured
