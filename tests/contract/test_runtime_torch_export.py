"""What the runtime of exported programs promises, tried on real ones in a real environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.proofs import Proof, assert_as_framework, make_models, prove_many

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torch_export")


@pytest.fixture(scope="module")
def programs(model_python: Callable[[str], Path], folder: Path) -> dict[str, Proof]:
    python = model_python("torch_export")
    jobs = make_models(python, "torch_export", folder)
    noted = {job["name"]: job for job in jobs}
    jobs.append({"name": "gpu", "spec": {**noted["linear"]["spec"], "device": "cuda"}})
    seventeen = {"rows": [[0.0] * 4] * 17}
    jobs.append({**noted["linear"], "name": "too_many", "inputs": seventeen})
    return prove_many(python, jobs, folder)


@pytest.mark.parametrize("name", ["linear", "old", "fixed", "nested"])
def test_a_program_answers_as_torch_does(
    programs: dict[str, Proof], folder: Path, name: str
) -> None:
    assert_as_framework(programs[name], folder, name)


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("linear", {"rows": ("FP32", [-1, 4])}, {"output_0": ("FP32", [-1, 2])}),
        ("fixed", {"rows": ("FP32", [3, 4])}, {"output_0": ("FP32", [3, 2])}),
        ("half", {"x": ("BF16", [2])}, {"output_0": ("BF16", [2])}),
        (
            "nested",
            {
                "parts_a": ("FP32", [2]),
                "parts_b_0": ("FP32", [2]),
                "pair_0": ("FP32", [3]),
                "pair_1": ("FP32", [1]),
                "count": ("INT64", []),
            },
            {
                "made": ("FP32", [2]),
                "more_0": ("FP32", []),
                "more_2": ("INT64", []),
                "more_3": ("INT64", []),
            },
        ),
    ],
)
def test_the_signature_is_the_programs_own(
    programs: dict[str, Proof], name: str, inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    assert programs[name].inputs == inputs
    assert programs[name].outputs == outputs


def test_only_a_dynamic_first_dimension_is_batched(programs: dict[str, Proof]) -> None:
    assert programs["linear"].passport["batching"]["equal"] is True
    assert programs["fixed"].passport["batching"] == {"equal": False}


def test_sizes_that_a_program_was_not_exported_for_are_the_callers_mistake(
    programs: dict[str, Proof],
) -> None:
    assert programs["too_many"].refused == {
        "code": "exported_program_guard",
        "params": {"condition": "rows.size()[0] <= 16"},
    }


@pytest.mark.parametrize(
    ("name", "code", "params"),
    [
        ("counting", "exported_program_changes_itself", {"name": "seen"}),
        (
            "complex",
            "exported_program_type_unsupported",
            {"name": "output_0", "type": "torch.complex64"},
        ),
        ("newer", "exported_program_version", {}),
        (
            "operator",
            "exported_program_operator_missing",
            {"name": "torch.ops.mine.softmax.int"},
        ),
        ("on_gpu", "exported_program_needs_gpu", {}),
        ("own_class", "exported_program_custom_object", {"name": "__main__.Own"}),
        ("damaged", "exported_program_invalid", {}),
        ("gpu", "silent_cpu_fallback", {"framework": "torch"}),
    ],
)
def test_a_program_fails_for_a_named_cause(
    programs: dict[str, Proof], name: str, code: str, params: dict[str, str]
) -> None:
    assert (programs[name].failure, programs[name].params) == (code, params)


def test_the_evidence_of_another_version_names_both(programs: dict[str, Proof]) -> None:
    assert "major=900" in programs["newer"].evidence
