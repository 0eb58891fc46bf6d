from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import StepFailedError
from server.pipeline.passport import read_passport

GOOD: dict[str, Any] = {
    "run_id": "x",
    "kind": "onnx",
    "framework": "onnxruntime",
    "framework_version": "1.32.0",
    "packages": {"numpy": "2.4.6"},
    "python": "3.11.7",
    "device_asked": "cpu",
    "device": "cpu",
    "signature": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "BYTES"}],
    },
    "load_seconds": 0.1,
    "peak_memory_bytes": 1000,
    "latency_ms": {"p50": 0.1, "p95": 0.2},
    "latency_by_batch_ms": [
        {"rows": 1, "p50": 0.1, "p95": 0.2},
        {"rows": 8, "p50": 0.3, "p95": 0.4},
    ],
    "measured_elements": 4,
    "batching": {"equal": True, "gain": 6.9},
    "warmup": {"source": "zeros", "inputs": []},
    "warnings": [{"code": "silent_cpu_fallback", "params": {"asked": "cuda"}}],
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_what_is_known_is_kept_and_nothing_else() -> None:
    read = read_passport({**GOOD, "surplus": "x"})
    assert read == {name: value for name, value in GOOD.items() if name != "run_id"}


@given(JSON)
def test_anything_else_is_a_named_failure(said: Any) -> None:
    with pytest.raises(StepFailedError, match="passport_malformed"):
        read_passport(said)


@given(st.sampled_from(sorted(GOOD)), JSON)
def test_one_wrong_part_is_read_or_a_named_failure(name: str, value: Any) -> None:
    try:
        read_passport({**GOOD, name: value})
    except StepFailedError as error:
        assert error.code == "passport_malformed"


@pytest.mark.parametrize(
    "given",
    [
        {"fill": 0},
        {"data": [1.5, True, None, "text", -1]},
        {"data": ["AA=="], "parameters": {"content_type": "base64"}},
    ],
)
def test_a_warm_up_is_kept_as_it_was(given: dict[str, Any]) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 4], **given}]
    read = read_passport({**GOOD, "warmup": {"source": "sample", "inputs": inputs}})
    assert read["warmup"]["inputs"] == inputs


@pytest.mark.parametrize(
    "inputs",
    [
        [{"name": "x", "datatype": "FP32", "data": [[[]]]}],
        [{"name": "x", "datatype": "FP32", "data": {}}],
        [{"name": "x", "datatype": "FP32", "fill": []}],
        [{"name": "x", "datatype": "FP32"}],
        [{"name": "x", "datatype": "FP32", "fill": 0}] * 10_001,
        {"x": 1},
    ],
)
def test_a_warm_up_takes_no_more_room_than_ours(inputs: Any) -> None:
    """A passport is kept in memory as long as its run is."""
    with pytest.raises(StepFailedError, match="passport_malformed"):
        read_passport({**GOOD, "warmup": {"source": "sample", "inputs": inputs}})
