from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model_server.classification import classify
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.protocol import InferCodec
from server.model_server.runtimes.base import Signature, TensorSpec
from tests.support.tensors import NUMPY

ROWS = TensorSpec("y", "FP32", (-1, -1))


def codec(datatype: str, shape: tuple[int, ...] | None) -> InferCodec:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", datatype, shape),))
    return InferCodec(signature, takes_fp64=False, model_version="1")


def request(**parameters: Any) -> bytes:
    one = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    outputs = [{"name": "y", "parameters": parameters}]
    return json.dumps({"inputs": [one], "outputs": outputs}).encode()


def answered(array: Any, count: int, datatype: str = "FP32") -> dict[str, Any]:
    talker = codec(datatype, (-1,) * array.ndim)
    written = talker.render(talker.parse(request(classification=count)), {"y": array}, "m")
    output: dict[str, Any] = json.loads(written.pieces[0])["outputs"][0]
    return output


def test_the_highest_values_of_each_row_stand_with_their_places() -> None:
    array = np.float32([[0.25, 0.1, 0.65], [0.5, 0.5, -1]])
    assert answered(array, 2) == {
        "name": "y",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["0.65:2", "0.25:0", "0.5:0", "0.5:1"],
    }


def test_no_more_classes_are_answered_than_there_are() -> None:
    assert answered(np.float32([[1, 2]]), 100)["shape"] == [1, 2]
    assert answered(np.zeros((0, 3), np.float32), 2)["shape"] == [0, 2]
    assert answered(np.zeros((2, 0), np.float32), 2)["shape"] == [2, 0]


def test_all_that_a_row_holds_is_one_list_of_classes() -> None:
    array = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    assert answered(array, 1)["data"] == ["5.0:5", "11.0:5"]


def test_an_output_of_one_dimension_of_one_size_is_one_row() -> None:
    talker = codec("INT64", (3,))
    asked = talker.parse(request(classification=2))
    written = talker.render(asked, {"y": np.array([5, 2**62 + 1, 7])}, "m")
    output = json.loads(written.pieces[0])["outputs"][0]
    assert (output["shape"], output["data"]) == ([2], [f"{2**62 + 1}:1", "7:2"])


@pytest.mark.parametrize("datatype", [*NUMPY])
def test_every_numeric_type_has_classes_and_no_other(datatype: str) -> None:
    array = np.array([[1, 0, 3]]).astype(NUMPY[datatype])
    if datatype in {"BOOL", "BYTES"}:
        with pytest.raises(BadInputError) as caught:
            answered(array, 1, datatype)
        assert caught.value.code == "classification_unsupported"
    else:
        place = answered(array, 1, datatype)["data"][0]
        assert (float(place.split(":")[0]), place.split(":")[1]) == (3, "2")


def test_classes_may_be_asked_for_in_binary() -> None:
    talker = codec("FP32", (-1, 2))
    asked = talker.parse(request(classification=1, binary_data=True))
    written = talker.render(asked, {"y": np.float32([[0.5, 1.5]])}, "m")
    output = json.loads(written.pieces[0])["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 1])
    assert (output["parameters"], written.pieces[1]) == (
        {"binary_data_size": 9},
        b"\x05\0\0\0001.5:1",
    )


@pytest.mark.parametrize("shape", [(), (-1,)])
def test_what_is_known_to_have_no_classes_is_refused_before_it_is_predicted(shape: Any) -> None:
    with pytest.raises(BadInputError) as caught:
        codec("FP32", shape).parse(request(classification=1))
    assert caught.value.code == "classification_unsupported"


def test_what_turns_out_to_have_no_classes_is_refused_then() -> None:
    talker = codec("FP32", None)
    asked = talker.parse(request(classification=1))
    for array in (np.float32([1, 2]), np.float32(1), np.array([[b"a"]], dtype=object)):
        with pytest.raises(BadInputError) as caught:
            talker.render(asked, {"y": array}, "m")
        assert caught.value.code == "classification_unsupported"


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "1", [], {}])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(BadInputError) as caught:
        codec("FP32", (-1, 2)).parse(request(classification=count))
    assert caught.value.params["field"] == "outputs[y].parameters.classification"


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_has_no_order(value: float, dtype: Any) -> None:
    with pytest.raises(ModelFailure) as caught:
        classify(ROWS, np.array([[1, value]], dtype=dtype), 1)
    assert caught.value.code == "output_not_finite"


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), max_size=4), st.integers(1, 4))
def test_the_order_is_that_of_a_stable_sort(rows: list[list[int]], count: int) -> None:
    array = np.array(rows, dtype=np.uint8).reshape(-1, 3)
    expected = [
        [f"{row[place]}:{place}".encode() for place in sorted(range(3), key=lambda n: -row[n])][
            :count
        ]
        for row in rows
    ]
    assert classify(ROWS, array, count).tolist() == expected
