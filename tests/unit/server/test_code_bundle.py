"""Bundles with a model.py: laid out as they came, their description checked field by field."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect
from server.messages import Messages
from tests.support.onnx_files import linear
from tests.support.pickle_files import sklearn_pickle, write, zipped
from tests.unit.server.test_unpack import NPY, tar_of

if TYPE_CHECKING:
    from pathlib import Path

    from server.artifacts.inspect import Report

MANIFEST = b"""
inputs: [{name: rows, datatype: FP32, shape: [-1, 4]}]
outputs: [{name: label, datatype: BYTES, shape: []}]
python: "3.11"
"""
BUNDLE = {"persephone.yaml": MANIFEST, "model.py": b"raise SystemExit('this was imported')\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def look(folder: Path, content: bytes) -> Report:
    return inspect(write(folder.parent, "upload", content), folder)


def refused(folder: Path, content: bytes) -> InspectionError:
    with pytest.raises(InspectionError) as caught:
        look(folder, content)
    return caught.value


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "pack",
    [zipped, lambda files: tar_of(*files.items()), lambda f: gzip.compress(tar_of(*f.items()))],
    ids=["zip", "tar", "tar.gz"],
)
@pytest.mark.parametrize("root", ["", "my/scorer/"])
def test_a_bundle_is_laid_out_as_it_came(folder: Path, pack: Any, root: str) -> None:
    inner = {
        **BUNDLE,
        # Whatever these are, it is the code's own affair.
        "weights/deep.zip": zipped({"a.onnx": b"x"}),
        "weights/model.pkl": b"cos\nsystem\n(S'true'\ntR.",
        "helper.py": b"",
        "MLmodel": b"\xff",
        "model.onnx": b"no model",
        "requirements.txt": b"scipy\n",
    }
    files = {root + name: content for name, content in inner.items()}
    report = look(folder, pack({**files, root + "sample.json": b"{}", "__MACOSX": b"x"}))

    assert (report.kind, report.file) == ("code", "code/declared.json")
    assert (report.requirements, report.sample) == ("scipy\n", "sample.json")
    assert report.made_with == {"python": "3.11"}
    laid = contents(folder)
    declared = json.loads(laid.pop("code/declared.json"))
    assert declared == {
        "inputs": [{"name": "rows", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "label", "datatype": "BYTES", "shape": []}],
    }
    beside = {"__MACOSX": b"x"} if not root else {}
    wanted = {f"code/files/{name}": content for name, content in {**inner, **beside}.items()}
    sample = {"sample.json": b"{}", "code/files/sample.json": b"{}"}
    assert laid == {**wanted, **sample}


def test_a_model_beside_the_folder_of_a_bundle_is_another_one(folder: Path) -> None:
    files = {f"scorer/{name}": content for name, content in BUNDLE.items()}
    with pytest.raises(InspectionError) as caught:
        look(folder, zipped({**files, "other/model.onnx": linear(), "notes.txt": b"x"}))
    assert caught.value.code == "archive_several_models"
    assert caught.value.params == {"models": ["scorer/model.py", "other/model.onnx"]}


def test_what_a_bundle_needs_may_stand_in_any_of_the_usual_files(folder: Path) -> None:
    files = {
        **BUNDLE,
        "persephone.yaml": MANIFEST.replace(b'python: "3.11"', b""),
        "conda.yaml": b"dependencies: [python=3.10, numpy=1.26.4, {pip: [pillow]}]",
        "deeper/requirements.txt": b"not-its-own\n",
    }
    report = look(folder, zipped(files))
    assert (report.requirements, report.requirements_file) == (
        "numpy==1.26.4\npillow\n",
        "conda.yaml",
    )
    assert report.made_with == {"python": "3.10"}
    assert "code/files/conda.yaml" in contents(folder)


def test_a_bundles_own_words_go_before_those_of_its_environment(folder: Path) -> None:
    files = {
        **BUNDLE,
        "conda.yaml": b"dependencies: [python=3.10, numpy=1.26.4]",
        "requirements.txt": b"pillow\n",
    }
    report = look(folder, zipped(files))
    assert (report.requirements, report.requirements_file) == ("pillow\n", "requirements.txt")
    assert report.made_with == {"python": "3.11"}


def test_code_without_a_description_is_no_bundle(folder: Path) -> None:
    archive = zipped({"model.py": b"raise SystemExit", "m.pkl": sklearn_pickle()})
    assert look(folder, archive).kind == "sklearn"
    assert [path.name for path in folder.iterdir()] == ["model.pkl"]


@pytest.mark.parametrize(
    ("files", "code", "params"),
    [
        ({"a/persephone.yaml": MANIFEST}, "bundle_code_missing", {"name": "a/model.py"}),
        (
            {**BUNDLE, "b/persephone.yaml": MANIFEST},
            "archive_several_models",
            {"models": ["b/persephone.yaml", "persephone.yaml"]},
        ),
        ({**BUNDLE, "a": b"", "a/b": b""}, "archive_name_repeated", {"name": "a/b"}),
        ({**BUNDLE, "a/b": b"", "a": b""}, "archive_name_repeated", {"name": "a"}),
        (
            {**BUNDLE, "requirements.txt": b"#" * 30_000},
            "requirements_too_large",
            {"file": "requirements.txt", "limit_kb": 24},
        ),
        ({**BUNDLE, "sample.json": b"{"}, "sample_damaged", {"name": "sample.json"}),
        ({**BUNDLE, "sample.npz": NPY}, "sample_damaged", {"name": "sample.npz"}),
    ],
)
def test_what_is_wrong_with_a_bundle_is_named(
    folder: Path, files: dict[str, bytes], code: str, params: dict[str, Any]
) -> None:
    failure = refused(folder, zipped(files))
    assert (failure.code, failure.params) == (code, params)


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        (b"inputs: [\n- x: {", "line 2"),
        (b"- a list", "no mapping"),
        (b"inputs: &a [1]\noutputs: *a", "references"),
        (b"inputs: " + b"[" * 60, "nested too deeply"),
        (b"inputs: !!python/object/apply:os.system [x]", "line 1"),
        (b"\xff\xfe", "no text"),
        (b"# " + b"x" * 300_000, "too long"),
    ],
)
def test_a_description_that_cannot_be_read_says_where(
    folder: Path, text: bytes, evidence: str
) -> None:
    failure = refused(folder, zipped({**BUNDLE, "persephone.yaml": text}))
    assert failure.code == "bundle_manifest_damaged"
    assert evidence in failure.evidence


def said(**changed: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1]}
    return {"inputs": [tensor], "outputs": [{**tensor, "name": "y", **changed}]}


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"inputs": []}, "bundle_field_invalid", "inputs"),
        ({"inputs": said()["inputs"]}, "bundle_field_invalid", "outputs"),
        ({**said(), "inputs": "x"}, "bundle_field_invalid", "inputs"),
        ({**said(), "inputs": [said()["inputs"][0]] * 65}, "bundle_field_invalid", "inputs"),
        ({**said(), "inputs": ["x"]}, "bundle_field_invalid", "inputs[0]"),
        ({**said(), "inputs": said()["inputs"] * 2}, "bundle_name_repeated", "inputs[1].name"),
        (said(name="../x"), "bundle_field_invalid", "outputs[0].name"),
        (said(name=None), "bundle_field_invalid", "outputs[0].name"),
        (said(datatype="float32"), "bundle_field_invalid", "outputs[0].datatype"),
        (said(datatype=["FP32"]), "bundle_field_invalid", "outputs[0].datatype"),
        (said(shape=4), "bundle_field_invalid", "outputs[0].shape"),
        (said(shape=[1] * 9), "bundle_field_invalid", "outputs[0].shape"),
        (said(shape=[-2]), "bundle_field_invalid", "outputs[0].shape[0]"),
        (said(shape=[True]), "bundle_field_invalid", "outputs[0].shape[0]"),
        (said(shape=[2**40]), "bundle_field_invalid", "outputs[0].shape[0]"),
        (said(dtype="FP32"), "bundle_field_unknown", "outputs[0].dtype"),
        ({**said(), "output": []}, "bundle_field_unknown", "output"),
        ({**said(), "python": 3.1}, "bundle_field_invalid", "python"),
        ({**said(), "python": "2.7"}, "bundle_field_invalid", "python"),
    ],
)
def test_every_field_that_is_wrong_is_named(
    folder: Path, fields: dict[str, Any], code: str, field: str
) -> None:
    text = json.dumps(fields).encode()
    failure = refused(folder, zipped({**BUNDLE, "persephone.yaml": text}))
    assert (failure.code, failure.params["field"]) == (code, field)
    for language in ("ru", "en"):
        assert field in Messages().render(failure.code, failure.params, language)


def test_yaml_that_is_no_json_in_a_field_is_shown_all_the_same(folder: Path) -> None:
    text = MANIFEST + b"python: 2026-11-27\n"
    failure = refused(folder, zipped({**BUNDLE, "persephone.yaml": text}))
    assert failure.params["found"] == '"2026-11-27"'
