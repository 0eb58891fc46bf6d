"""The binary tensor extension, alone and mixed with JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model_server import binary
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.protocol import InferCodec, InferRequest
from server.model_server.runtimes.base import Signature, TensorSpec
from tests.support.tensors import DATATYPES, FLOATS, NUMPY, arrays, same

ANY = st.sampled_from(DATATYPES).flatmap(
    lambda datatype: st.tuples(st.just(datatype), arrays(datatype, finite=False))
)


def codec(*datatypes: str, shape: tuple[int, ...] | None = None) -> InferCodec:
    inputs = tuple(TensorSpec(f"x{n}", name, shape) for n, name in enumerate(datatypes))
    outputs = tuple(TensorSpec(f"y{n}", name, shape) for n, name in enumerate(datatypes))
    return InferCodec(Signature(inputs, outputs), takes_fp64=False, model_version="1")


def packed(array: Any) -> bytes:
    return bytes(binary.encode("x", array)[1])


def entry(number: int, datatype: str, shape: Any, size: Any, **more: Any) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    name = f"x{number}"
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters, **more}


def request(inputs: list[Any], data: bytes = b"", **more: Any) -> tuple[bytes, int]:
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + data, len(header)


def refused(reader: InferCodec, body: bytes, length: int | None) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        reader.parse(body, length)
    return caught.value


def answered(
    writer: InferCodec, asked: InferRequest, answer: dict[str, Any]
) -> tuple[dict[str, Any], bytes]:
    written = writer.render(asked, answer, "m")
    body = b"".join(map(bytes, written.pieces))
    length = len(body) if written.header_length is None else written.header_length
    return json.loads(body[:length]), body[length:]


@given(st.lists(ANY, min_size=1, max_size=3), st.integers(0, 7))
def test_every_array_survives_the_way_in_and_out(drawn: list[Any], padding: int) -> None:
    talker = codec(*(datatype for datatype, _ in drawn))
    data = [packed(array) for _, array in drawn]
    inputs = [
        entry(n, datatype, list(array.shape), len(data[n]))
        for n, (datatype, array) in enumerate(drawn)
    ]
    header, _ = request(inputs, parameters={"binary_data_output": True})
    header += b" " * padding
    asked = talker.parse(header + b"".join(data), len(header))
    assert list(asked.inputs) == [f"x{n}" for n in range(len(drawn))]
    for n, (_, array) in enumerate(drawn):
        found = asked.inputs[f"x{n}"]
        assert same(found, array)
        assert found.flags.aligned
    answer = {f"y{n}": array for n, (_, array) in enumerate(drawn)}
    head, rest = answered(talker, asked, answer)
    for output, raw in zip(head["outputs"], data, strict=True):
        assert output["parameters"]["binary_data_size"] == len(raw)
        assert "data" not in output
        assert rest.startswith(raw)
        rest = rest[len(raw) :]
    assert rest == b""


@pytest.mark.parametrize("datatype", DATATYPES)
@given(st.data())
def test_binary_and_json_are_read_alike(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    talker = codec(datatype)
    head, _ = answered(talker, InferRequest({}), {"y0": array})
    sent = {**head["outputs"][0], "name": "x0"}
    by_json = talker.parse(json.dumps({"inputs": [sent]}).encode()).inputs["x0"]
    raw = packed(array)
    body, length = request([entry(0, datatype, list(array.shape), len(raw))], raw)
    by_binary = talker.parse(body, length).inputs["x0"]
    assert same(by_json, by_binary)
    assert same(by_json, array)


def test_inputs_may_be_mixed_and_their_bytes_stand_in_the_request_s_order() -> None:
    talker = codec("FP32", "INT64", "BYTES", "BF16")
    inputs = [
        entry(2, "BYTES", [2], 10),
        {"name": "x1", "datatype": "INT64", "shape": [1], "data": [2**62 + 1]},
        entry(0, "FP32", [1], 4),
        {"name": "x3", "datatype": "BF16", "shape": [2], "data": [0.5, -3]},
    ]
    data = b"\x02\0\0\0\xff\0" + b"\0\0\0\0" + np.float32([math.nan]).tobytes()
    asked = talker.parse(*request(inputs, data))
    assert list(asked.inputs) == ["x0", "x1", "x2", "x3"]
    assert math.isnan(asked.inputs["x0"][0])
    assert asked.inputs["x1"].tolist() == [2**62 + 1]
    assert asked.inputs["x2"].tolist() == [b"\xff\0", b""]
    assert asked.inputs["x3"].astype(np.float32).tolist() == [0.5, -3]


def test_an_aligned_tensor_is_not_copied() -> None:
    array = np.arange(1000, dtype=np.float32)
    header, length = request([entry(0, "FP32", [1000], 4000)])
    for padding in range(4):
        body = header + b" " * padding + array.tobytes()
        found = codec("FP32").parse(body, length + padding).inputs["x0"]
        there = np.frombuffer(body, np.uint8)
        inside = np.shares_memory(found, there)
        assert inside == ((there.ctypes.data + length + padding) % 4 == 0)
        assert same(found, array)


def test_outputs_say_one_by_one_how_they_are_written() -> None:
    talker = codec("FP32", "FP32", "FP32")
    one = {"name": "x0", "datatype": "FP32", "shape": [1], "data": [1]}
    inputs = [{**one, "name": f"x{n}"} for n in range(3)]
    outputs: list[Any] = [
        {"name": "y2", "parameters": {"binary_data": True}},
        {"name": "y0", "parameters": {"binary_data": False}},
        {"name": "y1"},
    ]
    array = np.float32([1.5, math.inf])
    answer = {"y0": np.float32([1]), "y1": np.float32([2]), "y2": array}
    asked = talker.parse(request(inputs, outputs=outputs)[0])
    head, rest = answered(talker, asked, answer)
    assert [output["name"] for output in head["outputs"]] == ["y2", "y0", "y1"]
    assert rest == array.tobytes()
    assert [output.get("data") for output in head["outputs"]] == [None, [1], [2]]
    more = {"outputs": outputs, "parameters": {"binary_data_output": True}}
    head, rest = answered(talker, talker.parse(request(inputs, **more)[0]), answer)
    assert rest == array.tobytes() + np.float32([2]).tobytes()
    assert [output.get("data") for output in head["outputs"]] == [None, [1], None]


def test_the_answer_is_json_alone_unless_binary_was_asked_for() -> None:
    talker = codec("FP32")
    written = talker.render(InferRequest({}), {"y0": np.float32([1])}, "m")
    assert (len(written.pieces), written.header_length) == (1, None)


def test_large_arrays_of_any_layout_are_sent_in_row_order() -> None:
    talker = codec("FP64")
    base = np.arange(40_000, dtype=">f8").reshape(100, 400)
    body, length = request([entry(0, "FP64", [0], 0)], parameters={"binary_data_output": True})
    asked = talker.parse(body, length)
    _, rest = answered(talker, asked, {"y0": base.T})
    assert rest == base.T.astype("<f8").tobytes()
    assert answered(talker, asked, {"y0": base[:0]})[1] == b""


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
@pytest.mark.parametrize("extra", [-1, 1])
def test_a_size_that_is_not_the_shape_s_is_named(datatype: str, extra: int) -> None:
    size = 3 * NUMPY[datatype].itemsize
    body, length = request([entry(0, datatype, [3], size + extra)], bytes(size + extra))
    error = refused(codec(datatype), body, length)
    assert error.code == "binary_size_differs"
    assert (error.params["expected"], error.params["found"]) == (size, size + extra)


def test_missing_and_left_over_bytes_are_named() -> None:
    talker = codec("FP32")
    body, length = request([entry(0, "FP32", [2], 8)], bytes(7))
    error = refused(talker, body, length)
    assert (error.code, error.params) == (
        "binary_data_missing",
        {"tensor": "x0", "expected": 8, "found": 7},
    )
    body, length = request([entry(0, "FP32", [2], 8)], bytes(9))
    error = refused(talker, body, length)
    assert (error.code, error.params) == ("binary_data_left_over", {"size": 1})
    body, length = request([entry(0, "FP32", [2], 8)])
    assert refused(talker, body, None).code == "binary_data_missing"
    body, length = request([{"name": "x0", "datatype": "FP32", "shape": [1], "data": [1]}], b"1")
    assert refused(talker, body, length).code == "binary_data_left_over"


@pytest.mark.parametrize("length", [-1, 10_000])
def test_a_header_length_outside_of_the_body_is_refused(length: int) -> None:
    body, _ = request([entry(0, "FP32", [2], 8)], bytes(8))
    assert refused(codec("FP32"), body, length).code == "binary_header_length"


@pytest.mark.parametrize("length", [0, 5])
def test_a_header_length_within_the_json_is_no_json(length: int) -> None:
    body, _ = request([entry(0, "FP32", [2], 8)], bytes(8))
    assert refused(codec("FP32"), body, length).code == "request_not_json"


@pytest.mark.parametrize("size", [-8, 8.0, "8", True, [], {}])
def test_a_size_that_is_no_number_is_refused(size: Any) -> None:
    body, length = request([entry(0, "FP32", [2], size)], bytes(8))
    error = refused(codec("FP32"), body, length)
    assert error.code == "field_malformed"
    assert error.params["field"] == "inputs[x0].parameters.binary_data_size"


def test_a_tensor_has_its_data_once() -> None:
    body, length = request([entry(0, "FP32", [1], 4, data=[1])], bytes(4))
    assert refused(codec("FP32"), body, length).code == "binary_data_twice"


def test_data_that_is_null_is_no_data_beside_bytes() -> None:
    for array in (np.zeros((0, 3), np.float32), np.ones((2, 3), np.float32)):
        raw = packed(array)
        body, length = request([entry(0, "FP32", list(array.shape), len(raw), data=None)], raw)
        assert same(codec("FP32").parse(body, length).inputs["x0"], array)
    # Without any bytes there is no header that says where they begin.
    body, _ = request([entry(0, "FP32", [0, 3], 0, data=None)])
    assert codec("FP32").parse(body).inputs["x0"].shape == (0, 3)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0\0\0", b"\1\0\0\0", b"\0\0\0\0", b"\0\0\0\0\0\0\0"),
        *(b"\0\0\0\0\1\0\0\0", b"\xff\xff\xff\xff\0\0\0\0", bytes(9)),
    ],
)
def test_text_whose_lengths_do_not_fit_is_refused(data: bytes) -> None:
    body, length = request([entry(0, "BYTES", [2], len(data))], data)
    assert refused(codec("BYTES"), body, length).code == "binary_text_broken"


def test_an_absurd_number_of_elements_allocates_nothing() -> None:
    shape = [2**31 - 1, 2**31 - 1]
    body, length = request([entry(0, "BYTES", shape, 4)], bytes(4))
    assert refused(codec("BYTES"), body, length).code == "binary_text_broken"
    body, length = request([entry(0, "FP64", shape, 8)], bytes(8))
    assert refused(codec("FP64"), body, length).code == "binary_size_differs"
    body, length = request([entry(0, "FP64", [*shape, *shape, 0], 0)])
    assert refused(codec("FP64"), body, length).code == "tensor_shape"


def test_a_boolean_is_a_byte_of_zero_or_one() -> None:
    body, length = request([entry(0, "BOOL", [3], 3)], b"\0\1\2")
    assert refused(codec("BOOL"), body, length).code == "tensor_value"


@pytest.mark.parametrize("role", ["inputs", "outputs"])
def test_shared_memory_is_refused_and_not_ignored(role: str) -> None:
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    one = {"name": "x0", "datatype": "FP32", "shape": [1], "data": [1]}
    inputs = [{**one, "parameters": parameters} if role == "inputs" else one]
    outputs = [{"name": "y0", "parameters": parameters}] if role == "outputs" else []
    body, _ = request(inputs, outputs=outputs)
    assert refused(codec("FP32"), body, None).code == "shared_memory_unsupported"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"parameters": {"binary_data_output": 1}}, "parameters.binary_data_output"),
        ({"parameters": []}, "parameters"),
        ({"outputs": [{"name": "y0", "parameters": 1}]}, "outputs[y0].parameters"),
        (
            {"outputs": [{"name": "y0", "parameters": {"binary_data": "yes"}}]},
            "outputs[y0].parameters.binary_data",
        ),
    ],
)
def test_malformed_parameters_are_named(more: dict[str, Any], field: str) -> None:
    one = {"name": "x0", "datatype": "FP32", "shape": [1], "data": [1]}
    error = refused(codec("FP32"), request([one], **more)[0], None)
    assert (error.code, error.params["field"]) == ("field_malformed", field)


def test_parameters_that_mean_nothing_here_are_ignored() -> None:
    one = {"name": "x0", "datatype": "FP32", "shape": [1], "data": [1]}
    inputs = [{**one, "parameters": {"content_type": "np", "more": [1]}}]
    parameters = {"sequence_id": 5, "sequence_start": True, "priority": 1, "timeout": 7}
    asked = codec("FP32").parse(request(inputs, parameters=parameters)[0])
    assert asked.inputs["x0"].tolist() == [1]


@pytest.mark.parametrize("datatype", FLOATS)
def test_what_is_not_finite_travels_in_binary_only(datatype: str) -> None:
    talker = codec(datatype)
    array = np.array([math.nan, math.inf, -math.inf], dtype=NUMPY[datatype])
    body, length = request([entry(0, datatype, [3], array.nbytes)], array.tobytes())
    asked = talker.parse(body, length)
    assert same(asked.inputs["x0"], array)
    with pytest.raises(ModelFailure) as caught:
        talker.render(asked, {"y0": array}, "m")
    assert caught.value.code == "output_not_finite"


def test_an_answer_of_a_type_unknown_to_the_protocol_is_refused_in_binary_too() -> None:
    with pytest.raises(ModelFailure) as caught:
        binary.encode("y", np.zeros(1, dtype=np.complex64))
    assert caught.value.code == "output_datatype_unsupported"


@given(
    st.sampled_from(DATATYPES),
    st.lists(st.integers(-1, 3), max_size=3),
    st.integers(-1, 40) | st.none(),
    st.binary(max_size=40),
    st.integers(-2, 300) | st.none(),
)
def test_any_binary_body_is_taken_or_refused_with_a_code(
    datatype: str, shape: list[int], size: int | None, data: bytes, length: int | None
) -> None:
    body, header = request([entry(0, datatype, shape, size)], data)
    for given_length in (header, length):
        try:
            codec(datatype).parse(body, given_length)
        except BadInputError as error:
            assert error.code


@given(st.binary(max_size=200), st.integers(-1, 220) | st.none())
def test_any_bytes_at_all_are_refused_with_a_code(body: bytes, length: int | None) -> None:
    refused(codec("FP32"), body, length)
