"""Bodies of predictions: arrays or a refusal with a name; the quick reader agrees with the careful."""

from __future__ import annotations

import json
from typing import Any

from tests.fuzz import harness

harness.instrument()

from server.model_server.failures import BadInputError
from server.model_server.protocol import InferCodec
from server.model_server.runtimes.base import Signature, TensorSpec
from tests.support.tensors import same

_SIGNATURES = [
    Signature((TensorSpec("x", "FP32", (-1, 2)),), ()),
    Signature((TensorSpec("x", "FP64", None),), ()),
    Signature((TensorSpec("x", "INT8", (-1,)), TensorSpec("y", "UINT64", (2, -1))), ()),
    Signature((TensorSpec("x", "FP16", (-1, -1)), TensorSpec("y", "BF16", (1,))), ()),
    Signature((TensorSpec("x", "BYTES", (-1,)), TensorSpec("y", "BOOL", (-1,))), ()),
]
_CODECS = [InferCodec(each, takes_fp64=True, model_version="1") for each in _SIGNATURES]


def target(data: bytes) -> None:
    """The first byte chooses the signature, the second how much of the body is JSON, if not all."""
    if len(data) < 2:
        return
    number, cut, body = data[0] % len(_CODECS), data[1], data[2:]
    found = _read(number, body, min(cut, len(body)) if cut else None)
    if not cut:
        # A length for the JSON is what the quick reader leaves to the careful one.
        careful = _read(number, body, len(body))
        assert (found is None) == (careful is None)
        assert not found or all(same(found[name], array) for name, array in careful.items())


def _read(number: int, body: bytes, header: int | None) -> dict[str, Any] | None:
    try:
        asked = _CODECS[number].parse(body, header)
    except BadInputError as error:
        assert error.code
        return None
    for spec in _SIGNATURES[number].inputs:
        assert spec.shape is None or len(spec.shape) == asked.inputs[spec.name].ndim
    return asked.inputs


def _tensor(name: str, datatype: str, shape: list[int], data: object, **more: object) -> object:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


def seeds() -> list[bytes]:
    bodies = [
        (0, [_tensor("x", "FP32", [1, 2], [1.5, -2])]),
        (0, [_tensor("x", "FP64", [2, 2], [[1, 2], [3, 4e3]])]),
        (1, [_tensor("x", "FP64", [3], [1.0, 1e-300, 0.5])]),
        (2, [_tensor("x", "INT8", [2], [1, -2]), _tensor("y", "UINT64", [2, 1], [1, 2**64 - 1])]),
        (3, [_tensor("x", "FP16", [1, 1], [0.5]), _tensor("y", "BF16", [1], [1])]),
        (4, [_tensor("x", "BYTES", [2], ["a", "é"]), _tensor("y", "BOOL", [1], [True])]),
    ]
    made = [bytes([number, 0]) + json.dumps({"inputs": each}).encode() for number, each in bodies]
    sized = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 2],
        "parameters": {"binary_data_size": 8},
    }
    head = json.dumps({"inputs": [sized], "outputs": [{"name": "y"}]}).encode()
    return [*made, bytes([0, len(head)]) + head + bytes(8)]


if __name__ == "__main__":
    harness.fuzz(target, seeds)
