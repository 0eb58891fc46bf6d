"""Predictions over the Open Inference Protocol: requests from nested lists, answers compared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.service import Caller


def shape_of(values: Any) -> list[int]:
    """Shape of nested lists."""
    return [len(values), *shape_of(values[0])] if isinstance(values, list) else []


def tensor(name: str, datatype: str, values: Any) -> dict[str, Any]:
    """One tensor of a request."""
    return {"name": name, "datatype": datatype, "shape": shape_of(values), "data": flat(values)}


def flat(values: Any) -> list[Any]:
    """All elements of nested lists, row by row."""
    if isinstance(values, list):
        return [element for value in values for element in flat(value)]
    return [values]


def addresses(status: Mapping[str, Any]) -> list[str]:
    """Both base URLs of a deployment: its own, and through the API's port."""
    return [status["endpoint"], status["gateway"]]


async def request_for(
    caller: Caller, base: str, name: str, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """A request with the types that the model's metadata asks for."""
    metadata = await caller.get(f"{base}/v2/models/{name}")
    datatypes = {one["name"]: one["datatype"] for one in metadata["inputs"]}
    assert set(datatypes) == set(inputs), metadata
    return {"inputs": [tensor(one, datatypes[one], values) for one, values in inputs.items()]}


async def assert_predicts(
    caller: Caller,
    status: Mapping[str, Any],
    inputs: Mapping[str, Any],
    expected: Mapping[str, Any],
) -> None:
    """Both addresses of a deployment answer what the framework itself answers."""
    run_id = status["runId"]
    for base in addresses(status):
        request = await request_for(caller, base, run_id, inputs)
        answer = await caller.post(f"{base}/v2/models/{run_id}/infer", json=request)
        assert answer["model_name"] == run_id
        assert_same(answer, expected)


def assert_same(answer: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """The tensors of an answer hold the expected values."""
    assert {one["name"] for one in answer["outputs"]} == set(expected)
    for output in answer["outputs"]:
        wanted = expected[output["name"]]
        assert math.prod(output["shape"]) == len(flat(wanted))
        if output["datatype"] == "BYTES":
            assert flat(output["data"]) == flat(wanted)
        else:
            assert flat(output["data"]) == pytest.approx(flat(wanted), rel=1e-5, abs=1e-6)
