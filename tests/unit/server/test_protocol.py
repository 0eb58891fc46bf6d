from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model_server.failures import BadInputError
from server.model_server.protocol import InferCodec, InferRequest
from server.model_server.runtimes.base import Signature, TensorSpec

INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
FLOATS = ("FP16", "BF16", "FP32", "FP64")


def signature(datatype: str = "FP32", shape: tuple[int, ...] | None = (-1, 2)) -> Signature:
    spec = TensorSpec("x", datatype, shape)
    return Signature(inputs=(spec,), outputs=(TensorSpec("y", datatype, shape),))


def tensor(data: Any, shape: Any, datatype: Any = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data, **more}


def parse(text: bytes, wanted: Signature, *, takes_fp64: bool = False) -> InferRequest:
    return InferCodec(wanted, takes_fp64=takes_fp64, model_version="1").parse(text)


def body(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def parsed(data: Any, shape: Any, datatype: str = "FP32", declared: Any = None) -> Any:
    wanted = signature(datatype, tuple([-1] * len(shape)) if declared is None else declared)
    return parse(body(tensor(data, shape, datatype)), wanted).inputs["x"]


def refused(text: bytes, wanted: Signature | None = None) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        parse(text, wanted or signature())
    return caught.value


def outcome(text: bytes, wanted: Signature) -> str:
    """Return the code of the refusal, or nothing if the request was taken."""
    try:
        parse(text, wanted)
    except BadInputError as error:
        return error.code
    return ""


def rendered(array: Any) -> dict[str, Any]:
    codec = InferCodec(signature(), takes_fp64=False, model_version="7")
    written = codec.render(InferRequest(inputs={}), {"y": array}, "m")
    assert written.header_length is None
    answer: dict[str, Any] = json.loads(b"".join(written.pieces))
    return answer


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [1.0, 2, 3.0, 4]])
def test_data_may_be_flat_or_nested(data: list[Any]) -> None:
    array = parsed(data, [2, 2])
    assert array.dtype == np.float32
    assert array.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_the_full_range_of_every_integer_type_is_exact_both_ways(datatype: str) -> None:
    limits = np.iinfo(datatype.lower())
    array = parsed([limits.min, limits.max], [2], datatype)
    assert array.dtype == np.dtype(datatype.lower())
    answer = rendered(array)["outputs"][0]
    assert answer["datatype"] == datatype
    assert answer["data"] == [limits.min, limits.max]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_out_of_range_are_refused_and_never_wrapped(datatype: str) -> None:
    limits = np.iinfo(datatype.lower())
    for value in (limits.min - 1, limits.max + 1, 10**30, -(10**30)):
        error = refused(body(tensor([value], [1], datatype)), signature(datatype, (-1,)))
        assert error.code == "tensor_range"
        assert (error.params["tensor"], error.params["datatype"]) == ("x", datatype)


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("value", [1.5, 1.0, True, "1", None, {}, [1]])
def test_only_whole_numbers_are_integers(datatype: str, value: Any) -> None:
    error = refused(body(tensor([0, value], [2], datatype)), signature(datatype, (-1,)))
    assert error.code == "tensor_value"


@pytest.mark.parametrize("value", [True, "1", None, {}, [1.0]])
@pytest.mark.parametrize("datatype", FLOATS)
def test_only_numbers_are_floats(datatype: str, value: Any) -> None:
    error = refused(body(tensor([0.5, value], [2], datatype)), signature(datatype, (-1,)))
    assert error.code == "tensor_value"


@pytest.mark.parametrize(
    ("datatype", "value"), [("FP16", 70000), ("BF16", 3.4e38), ("FP32", 1e39), ("FP32", -1e300)]
)
def test_a_float_too_large_for_its_type_is_refused(datatype: str, value: float) -> None:
    error = refused(body(tensor([value], [1], datatype)), signature(datatype, (-1,)))
    assert error.code == "tensor_range"
    assert error.params["found"] == value


@pytest.mark.parametrize("value", [0, 1, "true", None, 1.0])
def test_only_true_and_false_are_booleans(value: Any) -> None:
    assert refused(body(tensor([value], [1], "BOOL")), signature("BOOL", (-1,))).code == (
        "tensor_value"
    )
    assert parsed([True, False], [2], "BOOL").tolist() == [True, False]


def test_text_arrives_as_utf8_bytes_and_leaves_as_text() -> None:
    array = parsed(["жар", "", "a\u0000b"], [3], "BYTES")
    assert array.tolist() == ["жар".encode(), b"", b"a\0b"]
    answer = rendered(array)["outputs"][0]
    assert answer == {
        "name": "y",
        "datatype": "BYTES",
        "shape": [3],
        "data": ["жар", "", "a\u0000b"],
    }


def test_bytes_that_are_no_text_travel_as_base64_both_ways() -> None:
    raw = np.array([b"\xff\x00", b"plain"], dtype=object)
    answer = rendered(raw)["outputs"][0]
    assert answer["parameters"] == {"content_type": "base64"}
    sent = {**answer, "name": "x"}
    back = parse(body(sent), signature("BYTES", (-1,))).inputs["x"]
    assert back.tolist() == [b"\xff\x00", b"plain"]
    sent["data"] = ["!", "?"]
    assert refused(body(sent), signature("BYTES", (-1,))).code == "tensor_value"


@pytest.mark.parametrize("kind", ["<U4", "S4"])
def test_fixed_width_text_is_bytes_too(kind: str) -> None:
    assert rendered(np.array(["ab", "c"], dtype=kind))["outputs"][0]["data"] == ["ab", "c"]


@pytest.mark.parametrize(
    ("data", "shape"), [([], [0, 2]), ([[], []], [2, 0]), ([], [0]), ([[], []], [2, 0, 3])]
)
def test_zero_rows_are_a_tensor(data: list[Any], shape: list[int]) -> None:
    array = parsed(data, shape)
    assert array.shape == tuple(shape)
    assert rendered(array)["outputs"][0]["data"] == []


@pytest.mark.parametrize("data", [5, [5]])
def test_a_scalar_has_an_empty_shape(data: Any) -> None:
    array = parsed(data, [])
    assert array.shape == ()
    answer = rendered(array)["outputs"][0]
    assert (answer["shape"], answer["data"]) == ([], [5])


@pytest.mark.parametrize(
    "shape", [[1], [1, 3], [1, 2, 1], [-1, 2], [1.0, 2], ["1", 2], [True, 2], [2**62, 0], [[1], 2]]
)
def test_a_wrong_shape_says_what_was_expected_and_what_came(shape: list[Any]) -> None:
    error = refused(body(tensor([1, 2], shape)))
    assert error.code == "tensor_shape"
    assert (error.params["tensor"], error.params["expected"]) == ("x", "[-1, 2]")


@pytest.mark.parametrize("shape", [[2**31 - 1, 2**31 - 1, 0], [0] * 32, [2**40]])
def test_absurd_shapes_are_refused_and_allocate_nothing(shape: list[int]) -> None:
    code = outcome(body(tensor([], shape)), signature("FP32", None))
    assert code in {"", "tensor_shape", "tensor_elements"}


def test_a_model_of_unknown_rank_takes_any_shape() -> None:
    assert parse(body(tensor([1, 2], [2, 1])), signature("FP32", None)).inputs["x"].shape == (
        2,
        1,
    )


@pytest.mark.parametrize(("shape", "count"), [([1, 2], 3), ([2, 2], 3), ([0, 2], 1), ([1, 2], 0)])
def test_a_wrong_number_of_elements_is_counted_out(shape: list[int], count: int) -> None:
    error = refused(body(tensor([0.0] * count, shape)))
    assert error.code == "tensor_elements"
    assert (error.params["expected"], error.params["found"]) == (math.prod(shape), count)


@pytest.mark.parametrize(
    "data",
    [[[1, 2, 3, 4]], [[1], [2], [3], [4]], [[1, 2], [3]], [[1, 2], 3], [[[1, 2], [3, 4]]]],
)
def test_nesting_has_to_match_the_shape(data: list[Any]) -> None:
    assert refused(body(tensor(data, [2, 2]))).code == "tensor_nesting"


def test_deep_nesting_is_refused_without_a_crash() -> None:
    deep = b"[" * 900 + b"]" * 900
    text = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":%s}]}' % deep
    assert refused(text).code == "tensor_nesting"
    text = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%s],"data":[1]}]}' % deep
    assert refused(text).code == "tensor_shape"


@pytest.mark.parametrize("found", ["FP64", "INT32", "BF16", "fp32", "", "FP128"])
def test_the_declared_datatype_must_match_exactly(found: str) -> None:
    error = refused(body(tensor([1, 2], [1, 2], found)))
    assert error.code == "tensor_datatype"
    assert error.params == {"tensor": "x", "expected": "FP32", "found": found}


def test_fp64_is_taken_where_the_runtime_takes_it() -> None:
    text = body(tensor([0.1, 2], [1, 2], "FP64"))
    array = parse(text, signature(), takes_fp64=True).inputs["x"]
    assert (array.dtype, array[0, 0]) == (np.float64, 0.1)
    with pytest.raises(BadInputError):
        parse(text, signature("BYTES"), takes_fp64=True)


def test_a_type_that_json_cannot_carry_is_refused_clearly() -> None:
    error = refused(body(tensor([1, 2], [1, 2], "FP8")), signature("FP8"))
    assert error.code == "tensor_datatype_not_json"


def test_missing_extra_and_repeated_inputs_are_named() -> None:
    one = tensor([1, 2], [1, 2])
    missing = refused(body())
    assert (missing.code, missing.params["tensor"]) == ("tensor_missing", "x")
    extra = refused(body(one, {**one, "name": "other"}))
    assert (extra.code, extra.params["tensor"]) == ("tensor_unknown", "other")
    assert refused(body(one, one)).code == "tensor_repeated"


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"\xff\xfe",
        b'{"inputs": [NaN]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [Infinity]}]}',
        b"[1e400]",
        b"[" * 5000,
    ],
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    assert refused(text).code == "request_not_json"


@pytest.mark.parametrize("text", [b"", b" \r\n"])
def test_an_empty_body_is_called_so(text: bytes) -> None:
    assert refused(text).code == "request_empty"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b"[]", "request"),
        (b"null", "request"),
        (b'{"inputs": {}}', "inputs"),
        (b'{"inputs": [1]}', "inputs[0]"),
        (b'{"inputs": [{"name": 1}]}', "inputs[0].name"),
        (b'{"inputs": null}', "inputs"),
        (b'{"inputs": [{"name": "x", "datatype": null}]}', "inputs[x].datatype"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": 1}]}', "inputs[x].shape"),
        (body(tensor(None, [1, 2])), "inputs[x].data"),
        (body(tensor("ab", [1, 2])), "inputs[x].data"),
        (body(tensor(1, [1, 2])), "inputs[x].data"),
        (body(tensor([1, 2], [1, 2], parameters=[])), "inputs[x].parameters"),
        (body(tensor([1, 2], [1, 2]), id=5), "id"),
        (body(tensor([1, 2], [1, 2]), outputs={}), "outputs"),
        (body(tensor([1, 2], [1, 2]), outputs=["y"]), "outputs[0]"),
        (body(tensor([1, 2], [1, 2]), outputs=[{"name": 1}]), "outputs[0].name"),
    ],
)
def test_a_malformed_field_is_named(text: bytes, field: str) -> None:
    error = refused(text)
    if field != "request" and error.code != "field_malformed":
        pytest.fail(f"{error.code} {error.params}")
    assert error.params["field"] == field


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        (b"{}", "inputs", "array"),
        (b'{"instances": [[1, 2]]}', "inputs", "array"),
        (b'{"inputs": [{}]}', "inputs[0].name", "string"),
        (b'{"inputs": [{"name": "x"}]}', "inputs[x].datatype", "FP32"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32"}]}', "inputs[x].shape", "[-1, 2]"),
        (
            b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1,2]}]}',
            "inputs[x].data",
            "array",
        ),
        (body(tensor([1, 2], [1, 2]), outputs=[{}]), "outputs[0].name", "string"),
    ],
)
def test_a_field_that_is_not_there_is_called_missing(
    text: bytes, field: str, expected: str
) -> None:
    error = refused(text)
    assert error.code == "field_missing"
    assert error.params == {"field": field, "expected": expected}


def test_fields_that_may_be_left_out_may_be_null() -> None:
    text = body(tensor([1, 2], [1, 2], parameters=None), id=None, outputs=None, parameters=None)
    asked = parse(text, signature())
    assert (asked.id, asked.outputs) == (None, None)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_fp32_survives_the_way_out_and_back(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    answer = rendered(array)["outputs"][0]
    back = parsed(answer["data"], answer["shape"])
    assert back.tobytes() == array.tobytes()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_fp64_survives_the_way_out_and_back(values: list[float]) -> None:
    answer = rendered(np.array(values, dtype=np.float64))["outputs"][0]
    back = parsed(answer["data"], answer["shape"], "FP64")
    assert back.tobytes() == np.array(values, dtype=np.float64).tobytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | JSON,
        "datatype": st.sampled_from(["FP32", "INT64", "BYTES", "BOOL"]) | JSON,
        "shape": st.just([1, 2]) | st.lists(st.integers(-2, 3), max_size=3) | JSON,
        "data": st.just([1, 2]) | JSON,
        "parameters": JSON,
    },
)


@given(
    st.sampled_from(["FP32", "INT64", "BYTES", "BOOL"]),
    st.fixed_dictionaries(
        {"inputs": st.lists(FIELDS, max_size=2) | JSON}, optional={"id": JSON, "outputs": JSON}
    ),
)
def test_any_json_is_taken_or_refused_with_a_code(datatype: str, request: Any) -> None:
    text = json.dumps(request, allow_nan=True).encode()
    assert re.fullmatch("[a-z0-9_]*", outcome(text, signature(datatype, None)))


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_with_a_code(text: bytes) -> None:
    refused(text)
