"""What the ONNX runtime promises, tried on real models in a real environment."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import onnx_files
from tests.support.proofs import Proof, environment, prove_many, specification

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def onnx(
    model_python: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Proof]:
    folder = tmp_path_factory.mktemp("onnx")
    files = {
        "linear": onnx_files.linear(),
        "log": onnx_files.unary("Log"),
        "text": onnx_files.unary("Identity", onnx_files.STRING),
        "booleans": onnx_files.unary("Not", onnx_files.BOOL),
        "halves": onnx_files.unary("Neg", onnx_files.FLOAT16),
        "integers": onnx_files.unary("Neg", onnx_files.INT64),
        "scalar": onnx_files.unary("Neg", shape=[]),
        "zipmap": onnx_files.zipmap(),
        "images": onnx_files.image_model(),
        "sequence": onnx_files.sequence_output(),
        "bfloat": onnx_files.unary("Identity", onnx_files.BFLOAT16),
        "never_finite": onnx_files.never_finite(),
        "external": onnx_files.with_external_data("weights.bin"),
        "outside": onnx_files.with_external_data("../weights.bin"),
        "new_opset": onnx_files.linear(opset=99),
        "new_format": onnx_files.linear(ir_version=99),
        "operator": onnx_files.unary("NoSuchOperator"),
        "cut": onnx_files.linear()[:-30],
        "wrong_shape": onnx_files.model(
            [onnx_files.node("Relu", ["x"], ["y"])],
            [onnx_files.value("x", onnx_files.tensor_type(1, ["n", "m"]))],
            [onnx_files.value("y", onnx_files.tensor_type(1, [7, 7]))],
        ),
    }
    inputs = {
        "linear": {"x": [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]]},
        "text": {"x": [["a", "ы", ""]]},
        "integers": {"x": [[2**62 + 1, -5, 0]]},
        "scalar": {"x": 2.5},
        "zipmap": {"x": [[0.0, 1.0, 0.0], [3.0, 1.0, 0.0]]},
    }
    jobs = []
    for name, content in files.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(content)
        spec = specification("onnx", path)
        jobs.append({"name": name, "spec": spec, "inputs": inputs.get(name)})
    linear = folder / "linear.onnx"
    gpu = specification("onnx", linear, device="cuda")
    jobs.append({"name": "gpu", "spec": gpu})
    jobs.append({"name": "gpu_allowed", "spec": {**gpu, "allow_cpu_fallback": True}})
    samples = {
        "sample_json": ("sample.json", {"x": [[1, 2, 3, 4]]}),
        "sample_tensors": ("tensors.json", {"inputs": [tensor("x", [1, 4], [1, 2, 3, 4])]}),
        "sample_rank": ("rank.json", {"x": [1, 2, 3, 4]}),
        "sample_text": ("text.json", {"x": [["a", "b", "c", "d"]]}),
        "sample_ragged": ("ragged.json", {"x": [[1, 2], [3]]}),
        "sample_names": ("names.json", {"a": [1], "b": [2]}),
    }
    for name, (file, content) in samples.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
        sampled = specification("onnx", linear, sample=str(folder / file))
        jobs.append({"name": name, "spec": sampled})
    return prove_many(model_python("onnx"), jobs, folder)


def tensor(name: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": shape, "data": data}


def test_a_passport_says_what_was_proven(onnx: dict[str, Proof]) -> None:
    proof = onnx["linear"]
    passport = proof.passport

    assert passport["framework"] == "onnxruntime"
    assert passport["packages"]["onnxruntime"] == passport["framework_version"]
    assert (passport["device_asked"], passport["device"]) == ("cpu", "cpu")
    assert proof.inputs == {"x": ("FP32", [-1, 4])}
    assert proof.outputs == {"y": ("FP32", [-1, 2])}
    assert passport["warmup"] == {"source": "zeros", "inputs": [tensor("x", [1, 4], [0.0] * 4)]}
    assert passport["peak_memory_bytes"] > 10**7
    assert 0 < passport["latency_ms"]["p50"] <= passport["latency_ms"]["p95"]
    assert [batch["rows"] for batch in passport["latency_by_batch_ms"]] == [1, 8, 32]
    assert all(0 < batch["p50"] <= batch["p95"] for batch in passport["latency_by_batch_ms"])
    assert [event["event"] for event in proof.events] == [
        "progress",
        "loaded",
        "progress",
        "progress",
        "passport",
    ]


def test_onnx_answers_what_the_graph_computes(onnx: dict[str, Proof]) -> None:
    assert onnx["linear"].answers["y"]["data"] == [[6.25, 2.75], [0.75, -0.75]]
    assert onnx["text"].answers["y"]["data"] == ["a", "ы", ""]
    assert onnx["integers"].answers["y"]["data"] == [[-(2**62) - 1, 5, 0]]
    assert onnx["scalar"].answers["y"] == {"datatype": "FP32", "shape": [], "data": -2.5}


@pytest.mark.parametrize(
    ("name", "datatype"), [("text", "BYTES"), ("booleans", "BOOL"), ("halves", "FP16")]
)
def test_onnx_types_have_the_protocols_names(
    onnx: dict[str, Proof], name: str, datatype: str
) -> None:
    assert onnx[name].inputs == {"x": (datatype, [-1, 3])}


def test_ones_are_tried_where_zeros_give_infinity(onnx: dict[str, Proof]) -> None:
    assert onnx["log"].passport["warmup"]["source"] == "ones"


def test_larger_sizes_are_tried_where_one_and_two_are_refused(onnx: dict[str, Proof]) -> None:
    assert onnx["images"].passport["warmup"]["inputs"][0]["shape"] == [1, 3, 32, 32]


def test_a_zipmap_is_answered_as_a_table(onnx: dict[str, Proof]) -> None:
    proof = onnx["zipmap"]

    assert proof.outputs == {"label": ("INT64", [-1]), "probability": ("FP32", [-1, 3])}
    assert [warning["code"] for warning in proof.passport["warnings"]] == ["onnx_zipmap_flattened"]
    rows = proof.answers["probability"]["data"]
    assert rows[0] == pytest.approx([0.2119, 0.5761, 0.2119], abs=1e-3)
    assert rows[1][0] == pytest.approx(0.8437, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("sequence", "onnx_type_unsupported"),
        ("never_finite", "smoke_test_not_finite"),
        ("external", "onnx_missing_external_data"),
        ("outside", "onnx_missing_external_data"),
        ("new_opset", "onnx_opset_too_new"),
        ("new_format", "onnx_opset_too_new"),
        ("operator", "onnx_operator_missing"),
        ("cut", "onnx_invalid"),
        ("wrong_shape", "smoke_test_shape"),
        ("gpu", "silent_cpu_fallback"),
        ("sample_rank", "sample_does_not_fit"),
        ("sample_text", "sample_does_not_fit"),
        ("sample_ragged", "sample_unreadable"),
        ("sample_names", "sample_names_differ"),
    ],
)
def test_an_onnx_model_fails_for_a_named_cause(
    onnx: dict[str, Proof], name: str, code: str
) -> None:
    assert onnx[name].failure == code
    assert "/" not in onnx[name].evidence.replace("../", "")


def test_a_missing_operator_is_named(onnx: dict[str, Proof]) -> None:
    assert onnx["operator"].params == {"name": "NoSuchOperator"}


def test_an_allowed_fall_back_to_the_cpu_is_a_warning(onnx: dict[str, Proof]) -> None:
    passport = onnx["gpu_allowed"].passport

    assert (passport["device_asked"], passport["device"]) == ("cuda", "cpu")
    assert [warning["code"] for warning in passport["warnings"]] == ["cpu_fallback"]


@pytest.mark.parametrize("name", ["sample_json", "sample_tensors"])
def test_a_sample_is_the_smoke_tests_input(onnx: dict[str, Proof], name: str) -> None:
    assert onnx[name].passport["warmup"] == {
        "source": "sample",
        "inputs": [tensor("x", [1, 4], [1.0, 2.0, 3.0, 4.0])],
    }


def test_the_process_speaks_in_events_whatever_the_model_prints(
    model_python: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(onnx_files.linear())
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(specification("onnx", model)), encoding="utf-8")

    done = subprocess.run(
        [model_python("onnx"), "-P", "-m", "server.model_server", "prove", "--spec", spec],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0] == {"event": "progress", "code": "model_loading", "params": {}}
    assert events[-1]["event"] == "passport"
    assert events[-1]["passport"]["run_id"] == "r1"
