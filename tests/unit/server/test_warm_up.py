"""What of a smoke test's inputs goes into the passport: never more than the service reads of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from server.model_server.prove import _warm_up
from server.model_server.runtimes.base import Signature, TensorSpec
from server.model_server.smoke import Proof
from server.sandbox.child import LINE_BYTES
from server.sandbox.events import read_line
from tests.support.model_replica import Doubler


class TakesAnything(Doubler):
    """Answers one number, whatever it is asked."""

    def predict(self, inputs: Any, outputs: Any = None) -> dict[str, Any]:
        return {"y": np.zeros(1)}


def warm_up(inputs: dict[str, Any], *, free: bool = False) -> Any:
    specs = []
    for name, array in inputs.items():
        kind = "BYTES" if array.dtype.kind == "O" else "FP32"
        shape = (-1 if free else array.shape[0], *array.shape[1:])
        specs.append(TensorSpec(name, kind, shape))
    return _warm_up(TakesAnything(), Proof("sample", inputs, Signature(tuple(specs), ())))


def numbers(*shape: int) -> Any:
    return np.full(shape, -1.2345678e-30, "float32")


async def test_the_largest_one_is_read_by_the_service() -> None:
    texts = np.array([b"\x01" * 32_768, b"," * 32_767], dtype=object)
    made = warm_up({"x": numbers(65_534), "t": texts})
    line = json.dumps({"event": "passport", "passport": {"warmup": made}})
    assert len(line) < LINE_BYTES
    assert "data" in (await read_line(line))["passport"]["warmup"]["inputs"][0]


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": numbers(65_537)},
        {"x": numbers(40_000), "y": numbers(40_000)},
        {"t": np.array([b"x" * 40_000] * 2, dtype=object)},
    ],
)
def test_larger_ones_are_told_by_their_shapes(inputs: dict[str, Any]) -> None:
    made = warm_up(inputs)
    assert [tensor["shape"] for tensor in made["inputs"]] == [[*a.shape] for a in inputs.values()]
    assert all(tensor["fill"] in (0, "") for tensor in made["inputs"])


def test_many_rows_are_told_by_their_first() -> None:
    [tensor] = warm_up({"x": numbers(1000, 100)}, free=True)["inputs"]
    assert (tensor["shape"], len(tensor["data"])) == ([1, 100], 100)
