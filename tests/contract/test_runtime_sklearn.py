"""What the scikit-learn runtime promises, and what it keeps out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.proofs import Proof, assert_as_framework, make_models, prove_many

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def sklearn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sklearn")


@pytest.fixture(scope="module")
def sklearn(model_python: Callable[[str], Path], sklearn_folder: Path) -> dict[str, Proof]:
    python = model_python("sklearn")
    return prove_many(python, make_models(python, "sklearn", sklearn_folder), sklearn_folder)


@pytest.mark.parametrize(
    "name",
    [
        "forest",
        "forest_joblib",
        "forest_compressed",
        "pipeline",
        "numbers",
        "svc",
        "ridge",
        "ridge_several",
        "kmeans",
        "outliers",
        "scaler",
        "several",
        "words",
        "table",
    ],
)
def test_scikit_learn_answers_as_it_does_itself(
    sklearn: dict[str, Proof], sklearn_folder: Path, name: str
) -> None:
    assert_as_framework(sklearn[name], sklearn_folder, name)


def test_text_labels_are_bytes_and_probabilities_stand_beside(sklearn: dict[str, Proof]) -> None:
    proof = sklearn["forest"]

    assert proof.inputs == {"input": ("FP64", [-1, 4])}
    assert proof.outputs == {"predict": ("BYTES", [-1]), "predict_proba": ("FP64", [-1, 3])}


def test_probabilities_that_were_not_fitted_are_no_output(sklearn: dict[str, Proof]) -> None:
    assert sklearn["svc"].outputs == {"predict": ("INT64", [-1])}


def test_each_output_of_several_has_its_probabilities(sklearn: dict[str, Proof]) -> None:
    assert sklearn["several"].outputs == {
        "predict": ("INT64", [-1, 2]),
        "predict_proba_0": ("FP64", [-1, 3]),
        "predict_proba_1": ("FP64", [-1, 2]),
    }


def test_a_transformer_answers_transform(sklearn: dict[str, Proof]) -> None:
    assert sklearn["scaler"].outputs == {"transform": ("FP64", [-1, 4])}


def test_models_of_text_take_bytes(sklearn: dict[str, Proof]) -> None:
    assert sklearn["words"].inputs == {"input": ("BYTES", [-1])}
    assert sklearn["table"].inputs == {"input": ("BYTES", [-1, 2])}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("not_fitted", "sklearn_not_fitted"),
        ("not_an_estimator", "not_an_estimator"),
        ("reads_files", "sklearn_reads_files"),
        ("trailing", "pickle_trailing_bytes"),
        ("truncated", "pickle_truncated"),
        ("older_broken", "sklearn_version_mismatch"),
        ("renamed", "sklearn_name_missing"),
        ("no_predict", "sklearn_no_predict"),
        ("dictionaries", "sklearn_input_unsupported"),
        ("by_name", "sklearn_needs_dataframe"),
        ("framed", "module_missing"),
    ],
)
def test_a_pickle_fails_for_a_named_cause(sklearn: dict[str, Proof], name: str, code: str) -> None:
    assert sklearn[name].failure == code


def test_a_model_of_another_version_that_works_is_a_warning(sklearn: dict[str, Proof]) -> None:
    (warning,) = sklearn["older"].passport["warnings"]
    assert warning["code"] == "sklearn_version_differs"
    assert warning["params"]["made_with"] == "0.1.2"
    assert sklearn["older_broken"].params == {"made_with": "0.1.2"}


def test_what_is_not_installed_is_named_with_what_to_add(sklearn: dict[str, Proof]) -> None:
    assert sklearn["framed"].params == {"module": "pandas", "package": "pandas"}
    assert "pandas" in sklearn["framed"].evidence
    assert sklearn["renamed"].params == {"name": "sklearn.linear_model._ridge.Rigde"}


def test_no_malicious_pickle_runs(sklearn: dict[str, Proof], sklearn_folder: Path) -> None:
    evil = {name: proof for name, proof in sklearn.items() if name.startswith("evil_")}

    assert len(evil) > 15
    assert not (sklearn_folder / "marker").exists()
    codes = {name: proof.failure for name, proof in evil.items()}
    others = {"evil_second": "pickle_trailing_bytes", "evil_numpy_memmap": "pickle_not_loadable"}
    assert codes == {name: others.get(name, "unsafe_pickle") for name in evil}


def test_a_refused_pickle_names_what_it_refers_to(sklearn: dict[str, Proof]) -> None:
    assert sklearn["evil_subprocess"].params == {"name": "subprocess.check_call"}
    assert sklearn["evil_array"].params == {"name": "posix.system"}
    assert sklearn["evil_array_z"].params == {"name": "posix.system"}
