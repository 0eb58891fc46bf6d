"""Bodies that were right once: the quick reader and the careful one agree about all of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model_server.failures import BadInputError
from server.model_server.protocol import InferCodec
from server.model_server.runtimes.base import Signature, TensorSpec
from tests.support.fuzzing import SECONDS, examples
from tests.support.tensors import same

pytestmark = pytest.mark.timeout(SECONDS)

SIGNATURES = {
    "one": [TensorSpec("x", "FP32", (-1, 2))],
    "free": [TensorSpec("x", "FP64", None)],
    "small": [TensorSpec("x", "INT8", (-1,)), TensorSpec("y", "UINT64", (2, -1))],
    "half": [TensorSpec("x", "FP16", (-1, -1)), TensorSpec("y", "BF16", (1,))],
    "empty": [TensorSpec("x", "INT64", (-1, -1))],
    "words": [TensorSpec("x", "BYTES", (-1,)), TensorSpec("y", "BOOL", (-1,))],
}
VALUES: dict[str, Any] = {
    **dict.fromkeys(["FP16", "FP32", "FP64", "BF16"], 1.5),
    **dict.fromkeys(["INT8", "INT64", "UINT64"], 7),
    "BYTES": "é",
    "BOOL": True,
}
# Written as they are: no encoder would.
RAW = [
    *("0", "-0", "-0.0", "01", "+1", "1.", ".5", "1e5", "1E+5", "1e-400", "1e400", "-1e999", "0x1"),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "null",
        "true",
        "False",
        '""',
        '"1"',
        "{}",
        "[]",
        "[[]]",
        "[1]",
    ),
    *("128", "-129", "65504", "65520", "3.4028235e38", "3.5e38", "2147483648", "9007199254740993"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551615"),
    *("18446744073709551616", "1" * 400, "1.0", "7.0", "1.00000000000000000001", "5e-324"),
    *('"\\ud800"', '"\\u0000"', '"\\x"', "[1,]", '{"a":1,"a":2}', "/**/1", "1 1", "1099511627776"),
]
KEYS = [
    "name",
    "datatype",
    "shape",
    "data",
    "inputs",
    "outputs",
    "parameters",
    "id",
    "x",
    "",
    "\\u0078",
]
NAMES = ["x", "y", "z", "FP32", "FP64", "INT8", "UINT64", "BYTES", "é", "["]
PARAMETERS: list[dict[str, Any]] = [
    *(
        {},
        {"a": 1},
        {"binary_data_size": 4},
        {"shared_memory_region": "r"},
        {"content_type": "base64"},
    ),
    *({"binary_data_output": True}, {"binary_data_output": 1}),
]


@st.composite
def trees(draw: st.DrawFn, inputs: list[TensorSpec]) -> dict[str, Any]:
    """A request that the model takes, often nested and with more than is needed."""
    tensors = []
    for spec in inputs:
        sizes = [
            size if size >= 0 else draw(st.integers(0, 3))
            for size in (
                draw(st.sampled_from([(-1,), (-1, -1)])) if spec.shape is None else spec.shape
            )
        ]
        data: Any = VALUES[spec.datatype]
        for size in reversed(sizes if draw(st.booleans()) else [math.prod(sizes)]):
            data = [data] * size
        tensor = {"name": spec.name, "datatype": spec.datatype, "shape": sizes, "data": data}
        if draw(st.integers(0, 4)) == 0:
            tensor["parameters"] = draw(st.sampled_from(PARAMETERS))
        tensors.append(tensor)
    request: dict[str, Any] = {"inputs": draw(st.permutations(tensors))}
    if draw(st.booleans()):
        request["id"] = "1"
    if draw(st.integers(0, 3)) == 0:
        request["outputs"] = draw(
            st.sampled_from([[], [{"name": "out"}], [{"name": "z"}], [[]], "["])
        )
        request["parameters"] = draw(st.sampled_from(PARAMETERS))
    return request


@st.composite
def bodies(draw: st.DrawFn, inputs: list[TensorSpec]) -> bytes:
    """Such a request with some tokens exchanged, and then maybe some bytes."""
    text = json.dumps(draw(trees(inputs)), ensure_ascii=draw(st.booleans()))
    tokens = draw(st.just(_tokens(text)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(tokens) - 1))
        token = tokens[place]
        if token.startswith('"'):
            tokens[place] = f'"{draw(st.sampled_from(KEYS + NAMES))}"'
        elif token[0] in "-0123456789tf":
            tokens[place] = draw(st.sampled_from(RAW))
        else:
            tokens[place : place + 1] = draw(
                st.sampled_from([[], [token] * 2, ["["], ["]"], [","]])
            )
    data = bytearray("".join(tokens).encode())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    mark = draw(st.sampled_from([b""] * 12 + [b"\xef\xbb\xbf", b" ", b"\0"]))
    return mark + bytes(data) if draw(st.booleans()) else bytes(data) + mark


def _tokens(text: str) -> list[str]:
    found, place = [], 0
    decoder = json.JSONDecoder()
    while place < len(text):
        end = place + 1
        if text[place] in '"-0123456789tfn':
            end = decoder.raw_decode(text, place)[1]
        found.append(text[place:end])
        place = end
    return found


def read(codec: InferCodec, body: bytes) -> Any:
    try:
        return codec.parse(body)
    except BadInputError as error:
        return error.code, dict(error.params)


def assert_read_alike(body: bytes, inputs: list[TensorSpec], *, takes_fp64: bool = False) -> None:
    signature = Signature(tuple(inputs), (TensorSpec("out", "FP32", None),))
    codec = InferCodec(signature, takes_fp64=takes_fp64, model_version="1")
    careful = InferCodec(signature, takes_fp64=takes_fp64, model_version="1")
    careful._quick._parser = None
    found, wanted = read(codec, body), read(careful, body)
    if hasattr(wanted, "inputs"):
        assert hasattr(found, "inputs"), found
        assert list(found.inputs) == list(wanted.inputs)
        assert all(same(found.inputs[one], wanted.inputs[one]) for one in wanted.inputs)
        assert found[1:] == wanted[1:]
    else:
        assert found == wanted


@pytest.mark.parametrize("name", SIGNATURES)
@examples(250)
@given(st.data())
def test_the_quick_reader_and_the_careful_one_agree(name: str, data: st.DataObject) -> None:
    body = data.draw(bodies(SIGNATURES[name]))
    assert_read_alike(body, SIGNATURES[name], takes_fp64=data.draw(st.booleans()))


@pytest.mark.parametrize("size", [0, 2**31 - 1, 2**31, 2**40, 2**63, 2**64])
def test_both_bound_the_sizes_of_a_tensor_without_elements(size: int) -> None:
    for shape in ([0, size], [size, 0]):
        tensor = {"name": "x", "datatype": "INT64", "shape": shape, "data": []}
        assert_read_alike(json.dumps({"inputs": [tensor]}).encode(), SIGNATURES["empty"])
