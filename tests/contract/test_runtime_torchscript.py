"""What the TorchScript runtime promises, tried on real models in a real environment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.proofs import Proof, assert_as_framework, make_models, prove_many

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def torchscript_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchscript")


@pytest.fixture(scope="module")
def torchscript(model_python: Callable[[str], Path], torchscript_folder: Path) -> dict[str, Proof]:
    python = model_python("torchscript")
    jobs = make_models(python, "torchscript", torchscript_folder)
    noted = {job["name"]: job for job in jobs}
    sample = torchscript_folder / "sample.json"
    sample.write_text(json.dumps(noted["unknown"]["inputs"]), encoding="utf-8")
    sampled = {**noted["unknown"]["spec"], "sample": str(sample)}
    jobs.append({**noted["unknown"], "name": "sampled", "spec": sampled})
    row = torchscript_folder / "row.json"
    row.write_text(json.dumps({"x": [[1.0, 2.0, 3.0, 4.0]]}), encoding="utf-8")
    raises = {**noted["raises"]["spec"], "sample": str(row)}
    jobs.append({"name": "raises_at_its_sample", "spec": raises})
    gpu = {**noted["linear"]["spec"], "device": "cuda"}
    jobs.append({"name": "gpu", "spec": gpu})
    return prove_many(python, jobs, torchscript_folder)


@pytest.mark.parametrize(
    "name",
    ["linear", "traced", "two_inputs", "fixed_images", "any_images", "words", "recurrent"],
)
def test_torchscript_answers_as_torch_does(
    torchscript: dict[str, Proof], torchscript_folder: Path, name: str
) -> None:
    assert_as_framework(torchscript[name], torchscript_folder, name)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("linear", {"input": ("FP32", [-1, 4])}),
        ("two_inputs", {"b": ("FP32", [-1, 3]), "a": ("FP32", [-1, 5])}),
        ("fixed_images", {"input": ("FP32", [-1, 1, 28, 28])}),
        ("any_images", {"input": ("FP32", [-1, 3, -1, -1])}),
        ("words", {"ids": ("INT64", [-1, -1])}),
        ("recurrent", {"x": ("FP32", [-1, -1, 3])}),
        ("half", {"input": ("BF16", [-1, 4])}),
    ],
)
def test_shapes_are_learned_from_the_first_weights(
    torchscript: dict[str, Proof], name: str, inputs: dict[str, Any]
) -> None:
    assert torchscript[name].inputs == inputs
    assert list(torchscript[name].inputs) == list(inputs)


def test_nested_answers_have_names(torchscript: dict[str, Proof]) -> None:
    assert torchscript["nested"].outputs == {
        "output_0": ("FP32", [-1, 2]),
        "output_1_sum": ("FP32", [-1]),
        "output_1_first": ("FP32", [-1]),
        "output_2_0": ("FP32", [-1, 2]),
        "output_2_1": ("FP32", [-1, 2]),
    }


def test_unknown_shapes_need_a_sample(
    torchscript: dict[str, Proof], torchscript_folder: Path
) -> None:
    assert torchscript["unknown"].failure == "signature_unknown"
    assert torchscript["unknown"].params == {"inputs": "x"}

    sampled = torchscript["sampled"]
    assert sampled.passport["warmup"]["source"] == "sample"
    assert sampled.inputs == {"x": ("FP32", [-1, -1, -1])}
    assert_as_framework(sampled, torchscript_folder, "unknown")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("never_finite", "smoke_test_not_finite"),
        ("raises", "smoke_test_failed"),
        ("raises_at_its_sample", "smoke_test_sample_failed"),
        ("state_dict", "state_dict_not_torchscript"),
        ("state_dict_old", "state_dict_not_torchscript"),
        ("checkpoint", "state_dict_not_torchscript"),
        ("module", "module_pickle_not_torchscript"),
        ("gpu", "silent_cpu_fallback"),
        ("garbage", "torchscript_invalid"),
        ("no_class", "torchscript_class_missing"),
        ("no_forward", "torchscript_no_forward"),
        ("no_operator", "torchscript_operator_missing"),
        ("takes_text", "torchscript_argument_unsupported"),
        ("too_new", "torchscript_version_too_new"),
    ],
)
def test_a_torchscript_model_fails_for_a_named_cause(
    torchscript: dict[str, Proof], name: str, code: str
) -> None:
    assert torchscript[name].failure == code


def test_what_a_torchscript_model_lacks_is_named(torchscript: dict[str, Proof]) -> None:
    assert torchscript["no_operator"].params == {"name": "own::relu"}
    assert torchscript["no_class"].params["name"].endswith(".Part")
    assert torchscript["takes_text"].params == {"name": "name", "type": "str"}


def test_what_a_model_raises_is_the_evidence_without_paths(torchscript: dict[str, Proof]) -> None:
    assert "always, see" in torchscript["raises"].evidence
    assert "/etc" not in torchscript["raises"].evidence
