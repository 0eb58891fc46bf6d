"""The short way through a request gives what the long way gives, or gives way to it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.model_server.failures import BadInputError
from server.model_server.protocol import InferCodec
from server.model_server.quick import QuickReader
from server.model_server.runtimes.base import Signature, TensorSpec
from tests.support.tensors import FLOATS, INTEGERS, arrays, same

NUMBERS = (*INTEGERS, *FLOATS)


def signature(*datatypes: str, shape: tuple[int, ...] | None = None) -> Signature:
    inputs = tuple(TensorSpec(f"x{n}", name, shape) for n, name in enumerate(datatypes))
    return Signature(inputs, (TensorSpec("y", "FP32", None),))


def tensor(data: Any, shape: Any, datatype: str = "FP32", name: str = "x0") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def outcome(codec: InferCodec, text: bytes) -> Any:
    try:
        return codec.parse(text)
    except BadInputError as error:
        return error.code, error.params


def both_ways(text: bytes, wanted: Signature, *, takes_fp64: bool = False) -> Any:
    """Return what comes of a request, once it is certain that both ways lead there."""
    quick = InferCodec(wanted, takes_fp64=takes_fp64, model_version="1")
    careful = InferCodec(wanted, takes_fp64=takes_fp64, model_version="1")
    careful._quick._parser = None
    first, second = outcome(quick, text), outcome(careful, text)
    if isinstance(second, tuple) and not hasattr(second, "inputs"):
        assert first == second
    else:
        assert list(first.inputs) == list(second.inputs)
        assert all(same(first.inputs[name], second.inputs[name]) for name in first.inputs)
        assert first[1:] == second[1:]
    return second


def is_quick(text: bytes, wanted: Signature) -> bool:
    return QuickReader(wanted, takes_fp64=False).read(text) is not None


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("nested", [False, True])
@given(st.data())
def test_numbers_of_every_type_are_read_alike(
    datatype: str, nested: bool, data: st.DataObject
) -> None:
    array = data.draw(arrays(datatype))
    plain = array.astype(np.float64) if datatype in FLOATS else array
    values = plain.tolist() if nested else plain.ravel().tolist()
    text = json.dumps({"inputs": [tensor(values, list(array.shape), datatype)]}).encode()
    asked = both_ways(text, signature(datatype))
    assert np.array_equal(asked.inputs["x0"], array)


WEIRD: tuple[Any, ...] = (
    *(0, -0.0, 1, -1, 1.0, 1.5, 1e-400, 5e-324, 65504, 65505, 65520, 3.4028235e38, 3.5e38, 1e300),
    *(2**24 + 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64),
    *(10**400, True, False, None, "1", "", "[", {}, [], [1], [[]], {"a": [1]}),
)
LEAVES = st.sampled_from(WEIRD) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=8)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x0", "x1", "[", "x"]),
        "datatype": st.sampled_from(NUMBERS),
        "shape": st.sampled_from([[], [0], [1], [2], [1, 2], [2, 1], [2, 2], [1, 1, 1]]) | NESTED,
        "data": st.lists(LEAVES, max_size=4) | NESTED,
    },
    optional={
        "parameters": st.sampled_from(
            [None, {}, {"binary_data_size": 4}, {"shared_memory_region": "r"}, {"a": [1]}, [], 1]
        ),
        "more": LEAVES,
    },
)
OTHERS = {
    "id": st.sampled_from(["1", "[", None, 1, [1]]),
    "outputs": st.sampled_from([None, [], [{"name": "y"}], [{"name": "z"}], {}, [1], [[]]]),
    "parameters": st.sampled_from([None, {}, {"binary_data_output": True}, {"a": [1]}, []]),
    "more": LEAVES,
}


@given(
    st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=2),
    st.fixed_dictionaries({"inputs": st.lists(TENSORS, max_size=2) | NESTED}, optional=OTHERS),
    st.booleans(),
)
@example(["FP32"], {"inputs": [tensor([1, [2], []], [3])]}, False)
@example(["FP32"], {"inputs": [tensor([[1, 2, 3], 4], [2, 2])]}, False)
@example(["FP32"], {"inputs": [tensor([[1, 2], [3, 4]], [4])]}, False)
@example(["FP32"], {"inputs": [tensor([[1, 2, [3]], [4, 5, 6]], [2, 3])]}, False)
@example(["FP32"], {"inputs": [tensor([[[1], [2]]], [2])]}, False)
@example(["FP32"], {"inputs": [tensor([1], [[1]])]}, False)
@example(["FP32"], {"inputs": [tensor([1], [True])]}, False)
@example(["FP32"], {"inputs": [tensor([1], [1.0])]}, False)
@example(["FP32"], {"inputs": {"x0": tensor([1], [1])}}, False)
@example(
    ["FP32", "FP32"],
    {"inputs": [tensor([1, [2]], [2]), tensor([[1, 2, 3], 4], [2, 2], name="x1")]},
    False,
)
def test_any_request_comes_to_the_same(datatypes: list[str], request: Any, fp64: bool) -> None:
    both_ways(json.dumps(request).encode(), signature(*datatypes), takes_fp64=fp64)


ONE = b'{"name":"x0","datatype":"FP32","shape":[1],"data":[1]}'


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b" ", b"{", b"[]", b"1", b"null", b'"inputs"', b"\xff", b'{"inputs":[%s]}x' % ONE),
        b'\xef\xbb\xbf{"inputs":[%s]}' % ONE,
        b' \n{"inputs":[%s]}\t ' % ONE,
        b'{"inputs":[%s],"inputs":[]}' % ONE,
        b'{"inputs":[],"inputs":[%s]}' % ONE,
        b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":[1],"data":[2]}]}',
        b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"shape":[2],"data":[1]}]}',
        b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":[-0]}]}',
        b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":[1e400]}]}',
        b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":[01]}]}',
        b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":[1.]}]}',
        b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":[NaN]}]}',
        b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":[1,]}]}',
        b'{"inputs":[{"name":"x\\u0030","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"inputs":[{"name":"\\ud800","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"inputs":[%s],"id":"\\ud800"}' % ONE,
        b'{"inputs":[%s],"id":"\xff"}' % ONE,
        b'{"inputs":[%s],"id":"a\\u0000b"}' % ONE,
        b'{"inputs":[%s],"id":"a\x00b"}' % ONE,
        b'{"inputs":[%s],"a":%s}' % (ONE, b"[" * 1200 + b"]" * 1200),
        b'{"inputs":[%s],"a":123456789012345678901234567890}' % ONE,
    ],
)
def test_oddities_of_json_come_to_the_same(text: bytes) -> None:
    both_ways(text, signature("FP32"))


def test_the_usual_requests_take_the_short_way() -> None:
    wanted = signature("FP32", "INT64", shape=(-1, 2))
    first, second = tensor([1, 2], [1, 2]), tensor([[1, 2]], [1, 2], "INT64", "x1")
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    for more in ({}, {"id": "1", "outputs": outputs, "parameters": {"priority": 1}}):
        assert is_quick(json.dumps({"inputs": [first, second], **more}).encode(), wanted)
    second["parameters"] = {"content_type": "np"}
    assert is_quick(json.dumps({"inputs": [second, first]}).encode(), wanted)


def test_what_needs_care_does_not_take_the_short_way() -> None:
    text = json.dumps({"inputs": [tensor(["a"], [1], "BYTES")]}).encode()
    assert not is_quick(text, signature("BYTES"))
    assert not is_quick(b"\xef\xbb\xbf" + ONE, signature("FP32"))


def test_large_bodies_are_read_alike() -> None:
    values = np.random.default_rng(1).standard_normal((300, 256)).astype(np.float32)
    for data in (values.tolist(), values.ravel().tolist()):
        text = json.dumps({"inputs": [tensor(data, [300, 256])]}).encode()
        assert len(text) > 1 << 20
        assert is_quick(text, signature("FP32"))
        assert same(both_ways(text, signature("FP32")).inputs["x0"], values)


def test_an_array_outlives_the_next_request() -> None:
    codec = InferCodec(signature("FP64"), takes_fp64=False, model_version="1")
    texts = [json.dumps({"inputs": [tensor([n] * 50, [50], "FP64")]}).encode() for n in range(3)]
    found = [codec.parse(text).inputs["x0"] for text in texts]
    assert [set(array.tolist()) for array in found] == [{0.0}, {1.0}, {2.0}]
