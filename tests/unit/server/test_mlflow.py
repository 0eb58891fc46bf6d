"""Folders of MLflow, and the files of XGBoost and LightGBM: taken as what they are, or refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect
from server.artifacts.manifests import read_yaml
from server.artifacts.mlflow_code import declared_in
from tests.support.pickle_files import sklearn_pickle, torchscript, write, zipped

if TYPE_CHECKING:
    from pathlib import Path

    from server.artifacts.inspect import Report

XGBOOST = b'{"learner":{"attributes":{},"feature_names":[]},"version":[3,1,2]}'
UBJSON = (
    b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner{}"
    b"L\x00\x00\x00\x00\x00\x00\x00\x07version[#L\x00\x00\x00\x00\x00\x00\x00\x03i\x02i\x01i\x04}"
)
LIGHTGBM = b"tree\nversion=v4\nnum_class=1\n\nend of trees\n\nparameters:\nend of parameters\n"
CLOUDPICKLE = b"\x80\x04\x8c\x17cloudpickle.cloudpickle\x8c\x0e_make_function\x93."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def look(folder: Path, content: bytes) -> Report:
    shutil.rmtree(folder)
    folder.mkdir()
    return inspect(write(folder.parent, "upload", content), folder)


def mlmodel(*flavours: str) -> bytes:
    return ("flavors:\n" + "".join(f"  {each}\n" for each in flavours)).encode()


def refused(folder: Path, **files: bytes) -> InspectionError:
    named = {name.replace("__", "."): content for name, content in files.items()}
    with pytest.raises(InspectionError) as caught:
        look(folder, zipped({f"iris/{name}": content for name, content in named.items()}))
    return caught.value


@pytest.mark.parametrize(("content", "version"), [(XGBOOST, "3.1.2"), (UBJSON, "2.1.4")])
def test_a_bare_booster_tells_which_release_wrote_it(
    folder: Path, content: bytes, version: str
) -> None:
    report = look(folder, content)
    assert (report.kind, report.file) == ("xgboost", "model.xgb")
    assert report.made_with == {"xgboost": version}


def test_a_booster_of_lightgbm_is_told_by_its_text(folder: Path) -> None:
    report = look(folder, LIGHTGBM)
    assert (report.kind, report.file) == ("lightgbm", "model.lgb")


@pytest.mark.parametrize(
    ("content", "library"), [(XGBOOST, "XGBoost"), (UBJSON, "XGBoost"), (LIGHTGBM, "LightGBM")]
)
def test_a_booster_that_is_cut_off_is_refused(folder: Path, content: bytes, library: str) -> None:
    with pytest.raises(InspectionError) as caught:
        look(folder, content[: len(content) // 2])
    assert (caught.value.code, caught.value.params) == ("booster_damaged", {"library": library})


def test_the_file_that_mlmodel_names_is_the_model(folder: Path) -> None:
    said = mlmodel("xgboost: {data: model.json, xgb_version: 3.1.2}", "python_function: {}")
    wanted = b"mlflow==3.1\ncloudpickle==3.1.3\nmlflow-skinny\nxgboost==3.1.2\nmlflower==1\n"
    archive = {
        "iris/MLmodel": said,
        "iris/model.json": XGBOOST,
        "iris/requirements.txt": wanted,
        "iris/python_env.yaml": b"python: 3.10.4\ndependencies: [-r requirements.txt]\n",
        "iris/code/other.pkl": sklearn_pickle(),
    }
    report = look(folder, zipped(archive))
    assert report.kind == "xgboost"
    assert report.requirements == "xgboost==3.1.2\nmlflower==1\n"
    assert report.made_with == {"xgboost": "3.1.2", "python": "3.10.4"}
    assert [path.name for path in folder.iterdir()] == ["model.xgb"]


def test_conda_tells_versions_where_nothing_else_does(folder: Path) -> None:
    conda = b"dependencies:\n- python=3.9.18\n- pip<=23\n- pip:\n  - mlflow<3\n  - numpy==1.26.4\n"
    said = mlmodel("sklearn: {pickled_model: model.pkl, sklearn_version: 1.5.2}")
    files = {"MLmodel": said, "model.pkl": sklearn_pickle(), "conda.yaml": conda}
    report = look(folder, zipped(files))
    assert report.requirements == "numpy==1.26.4\n"
    assert report.made_with is not None
    assert report.made_with["python"] == "3.9.18"


def test_a_torchscript_module_is_found_in_its_folder(folder: Path) -> None:
    said = mlmodel("pytorch: {model_data: data, pytorch_version: 2.13.0+cpu}")
    report = look(folder, zipped({"MLmodel": said, "data/model.pth": torchscript()}))
    assert report.kind == "torchscript"
    assert report.made_with == {"torch": "2.13.0", "torchscript-format": "3"}


def test_models_of_cloudpickle_are_refused_by_name(folder: Path) -> None:
    said = mlmodel("python_function: {python_model: python_model.pkl, cloudpickle_version: '3'}")
    failure = refused(folder, MLmodel=said, python_model__pkl=CLOUDPICKLE)
    assert (failure.code, failure.params) == ("mlflow_cloudpickle", {"name": "python_model.pkl"})

    said = mlmodel("sklearn: {pickled_model: model.pkl, serialization_format: cloudpickle}")
    failure = refused(folder, MLmodel=said, model__pkl=CLOUDPICKLE)
    assert failure.code == "pickle_cloudpickle"
    assert failure.params == {"name": "cloudpickle.cloudpickle._make_function"}


def test_what_is_no_model_of_ours_is_named(folder: Path) -> None:
    failure = refused(folder, MLmodel=mlmodel("tensorflow: {}", "python_function: {}"))
    assert failure.code == "mlflow_flavour_unsupported"
    assert failure.params["found"] == ["tensorflow"]

    said = mlmodel("xgboost: {data: model.json}")
    assert refused(folder, MLmodel=said).code == "manifest_file_missing"
    failure = refused(folder, MLmodel=said, model__json=LIGHTGBM)
    assert failure.code == "manifest_file_differs"
    assert failure.params == {
        "manifest": "MLmodel",
        "name": "iris/model.json",
        "kinds": ["xgboost", "sklearn"],
    }


COLUMN = {"type": "double", "name": "length (cm)", "required": True}
TENSOR = {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}


def coded(*inputs: dict[str, Any], more: str = "") -> bytes:
    said = mlmodel("python_function: {model_code_path: /srv/me/scorer.py}")
    return said + f"signature: {{inputs: '{json.dumps(inputs)}', outputs: null}}\n{more}".encode()


def test_a_model_from_code_is_taken_with_all_its_files(folder: Path) -> None:
    wanted = b"mlflow==3.1\ncloudpickle==3.1.3\n"
    archive = {
        "README.md": b"not of the model",
        "iris/MLmodel": coded(COLUMN),
        "iris/scorer.py": b"import mlflow",
        "iris/artifacts/weights.bin": b"\x00",
        "iris/requirements.txt": wanted,
        "iris/python_env.yaml": b"python: 3.10.4",
        "iris/sample.json": b"{}",
    }
    report = look(folder, zipped(archive))
    assert (report.kind, report.file, report.sample) == (
        "mlflow",
        "code/declared.json",
        "sample.json",
    )
    assert (report.requirements, report.made_with) == (wanted.decode(), {"python": "3.10.4"})
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    within = (
        "MLmodel",
        "artifacts/weights.bin",
        "python_env.yaml",
        "requirements.txt",
        "sample.json",
        "scorer.py",
    )
    assert files == {
        "code/declared.json",
        "sample.json",
        *(f"code/files/{each}" for each in within),
    }
    assert json.loads((folder / "code/declared.json").read_text()) == {
        "form": "frame",
        "inputs": [{"name": "length (cm)", "datatype": "FP64", "shape": [-1], "type": "double"}],
        "outputs": [],
    }


def test_a_model_that_was_saved_on_windows_is_found(folder: Path) -> None:
    said = coded(COLUMN).replace(b"/srv/me/scorer.py", rb"'C:\Users\My Name\scorer.py'")
    assert look(folder, zipped({"MLmodel": said, "scorer.py": b""})).kind == "mlflow"
    kept = read_yaml((folder / "code/files/MLmodel").read_text(), "MLmodel")
    assert kept["flavors"] == {"python_function": {"model_code_path": "scorer.py"}}
    assert kept["signature"] == read_yaml(said.decode(), "MLmodel")["signature"]


@pytest.mark.parametrize(
    ("inputs", "more", "form", "names"),
    [
        ([TENSOR], "", "tensor", ["input"]),
        ([{**TENSOR, "name": "x"}], "", "tensors", ["x"]),
        ([{"type": "string"}], "", "frame", ["input"]),
        ([{"type": "string"}], "is_signature_from_type_hint: true", "list", ["input"]),
        ([{"type": "long"}, {"type": "float"}], "", "frame", ["input_0", "input_1"]),
    ],
)
def test_the_signature_says_what_the_code_is_given(
    inputs: list[dict[str, Any]], more: str, form: str, names: list[str]
) -> None:
    declared = declared_in(read_yaml(coded(*inputs, more=more).decode(), "MLmodel"))
    assert declared["form"] == form
    assert [each["name"] for each in declared["inputs"]] == names


@pytest.mark.parametrize(
    ("entry", "name", "found"),
    [
        ({"type": "map", "values": {"type": "string"}, "name": "x"}, "x", "map"),
        ({"type": "any"}, "input", "any"),
        ({"type": "array", "items": {"type": "double"}, "name": "x"}, "x", "array"),
        (
            {"type": "tensor", "tensor-spec": {"dtype": "complex64", "shape": []}},
            "input",
            "complex64",
        ),
    ],
)
def test_a_type_that_no_tensor_has_is_refused_by_name(
    folder: Path, entry: dict[str, Any], name: str, found: str
) -> None:
    failure = refused(folder, MLmodel=coded(entry), scorer__py=b"")
    assert failure.code == "mlflow_signature_unsupported"
    assert failure.params == {"name": name, "found": found}


def test_a_model_from_code_needs_its_file_and_its_signature(folder: Path) -> None:
    failure = refused(folder, MLmodel=coded(COLUMN))
    assert (failure.code, failure.params) == (
        "manifest_file_missing",
        {"manifest": "MLmodel", "name": "iris/scorer.py"},
    )
    bare = mlmodel("python_function: {model_code_path: scorer.py}")
    for said in (bare, bare + b"signature: {inputs: null}"):
        assert refused(folder, MLmodel=said, scorer__py=b"").code == "mlflow_signature_missing"


@pytest.mark.parametrize(
    "said",
    [
        "[1]",
        "{",
        json.dumps([COLUMN, TENSOR]),
        json.dumps([COLUMN, COLUMN]),
        json.dumps([{"type": "double", "name": ""}]),
        json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": ["x"]}}]),
        json.dumps([{"type": "tensor"}]),
    ],
)
def test_a_signature_that_cannot_be_read_is_damaged(said: str) -> None:
    with pytest.raises(InspectionError) as caught:
        declared_in({"signature": {"inputs": said}})
    assert caught.value.code == "manifest_damaged"


@pytest.mark.parametrize(
    "text",
    [
        b"- a list",
        b"flavors: {}",
        b"flavors: [",
        b"flavors: !!python/object/apply:os.system [x]",
        b"a: &a [1]\nflavors: {xgboost: *a}",
        b"flavors: " + b"[" * 60,
        b"flavors: {xgboost: {data: ../model.json}}",
        b"\xff\xfe",
        b"# " + b"x" * 300_000,
    ],
)
def test_a_description_that_cannot_be_read_is_refused(folder: Path, text: bytes) -> None:
    assert refused(folder, MLmodel=text, model__json=XGBOOST).code == "manifest_damaged"


def test_several_descriptions_are_several_models(folder: Path) -> None:
    said = mlmodel("xgboost: {data: model.json}")
    archive = {"a/MLmodel": said, "b/MLmodel": said, "a/model.json": XGBOOST}
    with pytest.raises(InspectionError) as caught:
        look(folder, zipped(archive))
    assert caught.value.code == "archive_several_models"
    assert caught.value.params == {"models": ["a/MLmodel", "b/MLmodel"]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "name", "tensor-spec", "dtype", "shape", "inputs"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON, st.booleans())
def test_any_signature_is_understood_or_refused_by_name(
    inputs: Any, outputs: Any, is_text: bool
) -> None:
    said = (json.dumps(inputs), json.dumps(outputs)) if is_text else (inputs, outputs)
    try:
        declared = declared_in({"signature": dict(zip(("inputs", "outputs"), said, strict=True))})
    except InspectionError as error:
        assert error.code.startswith(("mlflow_signature_", "manifest_damaged"))
    else:
        assert declared["inputs"]
