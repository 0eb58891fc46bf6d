"""What an upload asks for, in whichever of the usual files it says so."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect
from server.artifacts.requested import Requested, requested
from server.artifacts.unpack import nearest
from tests.support.onnx_files import linear
from tests.support.pickle_files import zipped

if TYPE_CHECKING:
    from pathlib import Path


def asked(files: dict[str, str], requirements: str | None = None) -> Requested:
    texts = {} if requirements is None else {"requirements.txt": requirements}
    return requested(texts, files, partial(nearest, model="model.pkl"), is_mlflow=False)


def conda(*entries: str, pip: str = "") -> str:
    lines = [f"- {entry}" for entry in entries] + (["- pip: [" + pip + "]"] if pip else [])
    return "name: trained\ndependencies:\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("entry", "requirement"),
    [
        ("scikit-learn=1.2.2", "scikit-learn==1.2.2"),
        ("scikit-learn==1.2", "scikit-learn==1.2"),
        ("scikit-learn=1.2", "scikit-learn==1.2.*"),
        ("numpy 1.26.*", "numpy==1.26.*"),
        ("numpy=1.26.4=py39h474f0d3_0", "numpy==1.26.4"),
        ("conda-forge::scipy>=1.10,<2", "scipy>=1.10,<2"),
        ("pytorch=2.1.0=py3.9_cuda11.8_cudnn8.7.0_0", "torch==2.1.0"),
        ("py-xgboost=2.0.3", "xgboost==2.0.3"),
        ("pandas", "pandas"),
        ("numpy ~=1.26", "numpy~=1.26"),
        ("numpy[version='>=1.2']", None),
        ("cudatoolkit=11.8", None),
        ("openssl=3.0.2", None),
    ],
)
def test_packages_that_conda_pins_are_understood(entry: str, requirement: str | None) -> None:
    found = asked({"conda.yaml": conda("python=3.9", entry)})
    assert found.text == (None if requirement is None else f"{requirement}\n")
    assert found.python == "3.9"


@pytest.mark.parametrize(
    "entry",
    [
        *("python=3.9", "python==3.9", "python 3.9", "python=3.9.*", "conda-forge::python=3.9"),
        *("python=3.9=h123_0", "python 3.9.*"),
    ],
)
def test_the_python_that_conda_names_is_understood(entry: str) -> None:
    assert asked({"conda.yaml": conda(entry)}).python == "3.9"


@pytest.mark.parametrize("entry", ["python>=3.9", "python3.9", "python-dateutil=3.9", "python"])
def test_what_names_no_python_is_none(entry: str) -> None:
    assert asked({"conda.yaml": conda(entry)}).python is None


@pytest.mark.parametrize("text", ["", "\n", "# see conda.yaml\n\n"])
def test_requirements_that_name_no_package_leave_it_to_the_next_file(text: str) -> None:
    found = asked({"conda.yaml": conda("numpy=1.26.4")}, text)
    assert (found.text, found.file) == ("numpy==1.26.4\n", "conda.yaml")


def test_a_folder_of_which_the_models_own_begins_alike_is_not_beside_it() -> None:
    names = ["model/requirements.txt", "model_v2/requirements.txt"]
    assert nearest(names, "model_v2/model.onnx") == "model_v2/requirements.txt"
    assert nearest(["requirements.txt", *names], "model_v2/deep/m.onnx") == names[1]
    assert nearest(["requirements.txt", names[0]], "model_v2/model.onnx") == "requirements.txt"
    assert nearest(["requirements.txt"], "model.onnx") == "requirements.txt"


def test_what_pip_asks_for_in_a_conda_environment_stands() -> None:
    text = conda("scikit-learn=1.2.2", "numpy=1.23.5", pip="'scikit_learn==1.3.0', joblib")
    assert asked({"environment.yml": text}) == Requested(
        text="numpy==1.23.5\nscikit_learn==1.3.0\njoblib\n", file="environment.yml"
    )


def test_a_python_env_may_name_packages_itself() -> None:
    text = "python: 3.10.4\nbuild_dependencies: [pip]\ndependencies: ['-r a.txt', numpy==1.26.4]\n"
    assert asked({"python_env.yaml": text}) == Requested(
        text="numpy==1.26.4\n", file="python_env.yaml", python="3.10.4"
    )


def test_the_dependencies_of_a_project_count_where_nothing_else_is_said() -> None:
    text = '[project]\nname = "a"\ndependencies = ["scikit-learn==1.5.2", "numpy<2"]\n'
    found = asked({"pyproject.toml": text})
    assert found == Requested(text="scikit-learn==1.5.2\nnumpy<2\n", file="pyproject.toml")
    assert asked({"pyproject.toml": "[tool.flit.metadata]\nrequires = ['numpy']\n"}) == Requested()


def test_the_first_file_that_names_a_package_counts() -> None:
    files = {
        "conda.yaml": conda("python=3.9", "openssl=3"),
        "python_env.yaml": "python: 3.10.4\ndependencies: [scipy]\n",
        "pyproject.toml": '[project]\ndependencies = ["numpy"]\n',
    }
    assert asked(files) == Requested(text="scipy\n", file="python_env.yaml", python="3.10.4")
    assert asked(files, "joblib\n") == Requested(
        text="joblib\n", file="requirements.txt", python="3.10.4"
    )


@pytest.mark.parametrize("name", ["conda.yaml", "python_env.yaml", "pyproject.toml"])
def test_a_file_that_cannot_be_read_is_named(name: str) -> None:
    with pytest.raises(InspectionError) as caught:
        asked({name: "dependencies: [\n"})
    assert (caught.value.code, caught.value.params) == ("manifest_damaged", {"name": name})
    assert caught.value.evidence


def test_the_files_of_an_archive_are_found(tmp_path: Path) -> None:
    files = {
        "train/model.onnx": linear(),
        "train/conda.yaml": conda("python=3.9.18", "onnxruntime=1.17.1").encode(),
        "other/environment.yml": b"dependencies: [python=3.8]",
    }
    artifact, folder = tmp_path / "upload", tmp_path / "out"
    artifact.write_bytes(zipped(files))
    folder.mkdir()
    report = inspect(artifact, folder)
    assert (report.requirements, report.requirements_file) == (
        "onnxruntime==1.17.1\n",
        "conda.yaml",
    )
    wrote = {"onnx-ir": "8", "onnx-opset": "17", "onnx-ml-opset": "3"}
    assert report.made_with == {**wrote, "python": "3.9.18"}


@pytest.mark.parametrize(
    ("files", "requires"),
    [
        ({"pyproject.toml": '[project]\nrequires-python = ">=3.10,<3.12"'}, ">=3.10,<3.12"),
        (
            {"pyproject.toml": '[project]\nrequires-python = "~=3.9, !=3.9.1,==3.*"'},
            "~=3.9, !=3.9.1,==3.*",
        ),
        ({"pyproject.toml": '[project]\nrequires-python = ""'}, None),
        ({"pyproject.toml": "[tool.poetry]\nrequires-python = 1"}, None),
        ({"conda.yaml": conda("python>=3.9,<3.11")}, ">=3.9,<3.11"),
        ({"pyproject.toml": '[project]\nrequires-python = ">=3.10,"'}, ">=3.10,"),
        ({"pyproject.toml": '[tool.poetry.dependencies]\npython = "~=3"'}, None),
        ({"conda.yaml": conda("python>=3.8abc")}, None),
        ({"conda.yaml": conda("python!3.9")}, None),
        ({"conda.yaml": conda("python=3.9")}, None),
        ({"conda.yaml": conda("python")}, None),
    ],
)
def test_a_range_of_pythons_is_a_demand(files: dict[str, str], requires: str | None) -> None:
    assert asked(files).requires_python == requires


def test_a_range_beside_requirements_may_be_about_something_else() -> None:
    project = {"pyproject.toml": '[project]\nrequires-python = ">=3.10rc1"'}
    assert asked(project, "numpy\n").requires_python is None


@pytest.mark.parametrize("said", ["3", '"python 3"', '">=3.*"', '"~=3"', '"=>3"', '",>=3"', "[]"])
def test_a_range_that_says_nothing_is_refused(said: str) -> None:
    with pytest.raises(InspectionError) as caught:
        asked({"pyproject.toml": f"[project]\nrequires-python = {said}"})
    assert (caught.value.code, caught.value.params) == (
        "manifest_damaged",
        {"name": "pyproject.toml"},
    )


POETRY = """
[tool.poetry]
name = "scorer"
[tool.poetry.dependencies]
python = "^3.10"
plain = "*"
caret = "^1.2.3"
young = "^0.2.3"
newborn = "^0.0.3"
zero = "^0"
tilde = "~1.2.3"
major = "~1"
exact = "1.2.3"
prefix = "1.2.*"
range = ">=1.2, !=1.3,<2"
either = "^1 || ^2"
odd = "^1.2b1"
table = { version = "^2", extras = ["a", "b"], markers = "python_version < '3.9'" }
left-out = { version = "1", optional = true }
several = [{ version = "1", python = "<3.9" }, { version = "2" }]
place = { git = "https://host/x.git" }
[tool.poetry.group.dev.dependencies]
pytest = "^8"
"""


def test_what_poetry_asks_for_is_said_in_the_words_of_the_standard() -> None:
    found = asked({"pyproject.toml": POETRY})
    assert (found.file, found.requires_python) == ("pyproject.toml", ">=3.10,<4")
    assert (found.text or "").splitlines() == [
        "plain",
        "caret>=1.2.3,<2",
        "young>=0.2.3,<0.3",
        "newborn>=0.0.3,<0.0.4",
        "zero>=0,<1",
        "tilde>=1.2.3,<1.3",
        "major>=1,<2",
        "exact==1.2.3",
        "prefix==1.2.*",
        "range>=1.2,!=1.3,<2",
        "either",
        "odd",
        "table[a,b]>=2,<3; python_version < '3.9'",
        "several",
        "place @ https://host/x.git",
    ]


def test_the_project_itself_comes_before_poetry() -> None:
    both = '[project]\ndependencies = ["numpy"]\nrequires-python = ">=3.9"\n' + POETRY
    found = asked({"pyproject.toml": both})
    assert (found.text, found.requires_python) == ("numpy\n", ">=3.9")
    assert asked({"pyproject.toml": "[tool]\npoetry = 1"}) == Requested()
