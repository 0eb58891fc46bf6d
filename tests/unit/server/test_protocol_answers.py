from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from server.model_server import protocol
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.protocol import InferCodec, InferRequest
from server.model_server.runtimes.base import Signature, TensorSpec


def body(**more: Any) -> bytes:
    one = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    return json.dumps({"inputs": [one], **more}).encode()


def rendered(array: Any) -> dict[str, Any]:
    wanted = Signature((), (TensorSpec("y", "FP32", None),))
    codec = InferCodec(wanted, takes_fp64=False, model_version="7")
    written = codec.render(InferRequest(inputs={}), {"y": array}, "m")
    answer: dict[str, Any] = json.loads(b"".join(written.pieces))
    return answer


def test_outputs_narrow_the_answer_in_the_order_asked_for() -> None:
    spec = TensorSpec("x", "FP32", (-1,))
    outputs = tuple(TensorSpec(name, "FP32", (-1,)) for name in ("a", "b", "c"))
    wanted = Signature((spec,), outputs)
    codec = InferCodec(wanted, takes_fp64=False, model_version="3")
    assert codec.parse(body(outputs=[])).outputs is None
    asked = codec.parse(body(outputs=[{"name": "c"}, {"name": "a"}], id="7"))
    answer = {name: np.zeros(1, np.float32) for name in ("a", "b", "c")}
    written = json.loads(codec.render(asked, answer, "shop").pieces[0])
    assert [output["name"] for output in written["outputs"]] == ["c", "a"]
    assert (written["id"], written["model_name"], written["model_version"]) == ("7", "shop", "3")
    with pytest.raises(BadInputError) as unknown:
        codec.parse(body(outputs=[{"name": "d"}]))
    assert (unknown.value.code, unknown.value.params["expected"]) == ("output_unknown", "a, b, c")
    with pytest.raises(BadInputError) as repeated:
        codec.parse(body(outputs=[{"name": "a"}, {"name": "a"}]))
    assert repeated.value.code == "output_repeated"
    with pytest.raises(ModelFailure) as missing:
        codec.render(asked, {"a": answer["a"]}, "m")
    assert missing.value.code == "output_missing"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, "bfloat16"])
def test_an_answer_that_is_not_finite_never_becomes_json(value: float, dtype: Any) -> None:
    with pytest.raises(ModelFailure) as caught:
        rendered(np.array([1, value], dtype=dtype))
    assert (caught.value.code, caught.value.params) == ("output_not_finite", {"tensor": "y"})


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "timedelta64[s]"])
def test_an_answer_of_a_type_unknown_to_the_protocol_is_refused(dtype: str) -> None:
    with pytest.raises(ModelFailure) as caught:
        rendered(np.zeros(1, dtype=dtype))
    assert caught.value.code == "output_datatype_unsupported"


def test_arrays_of_any_layout_are_written_in_row_order() -> None:
    base = np.arange(6, dtype=">f4").reshape(2, 3)
    assert rendered(base.T)["outputs"][0]["data"] == [0, 3, 1, 4, 2, 5]
    assert rendered(np.arange(8)[::2])["outputs"][0]["data"] == [0, 2, 4, 6]


def test_warm_up_inputs_are_tensors_fills_or_zeros() -> None:
    wanted = Signature(
        (
            TensorSpec("a", "FP32", (-1, 2)),
            TensorSpec("b", "INT64", (3,)),
            TensorSpec("c", "BYTES", (-1,)),
            TensorSpec("d", "BYTES", (2,)),
        ),
        (),
    )
    asked = protocol.warm_up(
        [
            {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]},
            {"name": "b", "datatype": "INT64", "shape": [3], "fill": 4},
            {"name": "d", "datatype": "BYTES", "shape": [2], "fill": "word"},
        ],
        wanted,
    )
    assert asked.inputs["a"].tolist() == [[1, 2]]
    assert (asked.inputs["b"].dtype, asked.inputs["b"].tolist()) == (np.int64, [4, 4, 4])
    assert asked.inputs["c"].tolist() == [b""]
    assert asked.inputs["d"].tolist() == [b"word", b"word"]


def test_metadata_leaves_out_a_shape_that_nobody_knows() -> None:
    described = protocol.metadata(
        Signature((TensorSpec("x", "FP32", None),), ()),
        model_name="m",
        model_version="2",
        platform="p",
    )
    assert described["inputs"] == [{"name": "x", "datatype": "FP32"}]
    assert described["versions"] == ["2"]
    passport = {"signature": {"inputs": described["inputs"], "outputs": []}}
    assert protocol.signature_of(passport) == Signature((TensorSpec("x", "FP32", None),), ())
    assert protocol.signature_of({}) is None
