"""Entries of Triton's model repositories: taken for the file they name, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect
from tests.support.onnx_files import linear
from tests.support.pickle_files import torchscript, write, zipped

if TYPE_CHECKING:
    from pathlib import Path

    from server.artifacts.inspect import Report


def look(tmp_path: Path, config: str, files: dict[str, bytes]) -> Report:
    (tmp_path / "out").mkdir()
    content = zipped({"m/config.pbtxt": config.encode(), **files})
    return inspect(write(tmp_path, "upload", content), tmp_path / "out")


def refused(tmp_path: Path, config: str, files: dict[str, bytes]) -> InspectionError:
    with pytest.raises(InspectionError) as caught:
        look(tmp_path, config, files)
    return caught.value


@pytest.mark.parametrize(
    ("config", "name", "kind"),
    [
        ('backend: "onnxruntime"', "m/1/model.onnx", "onnx"),
        ('name: "x" # platform: "python"\nplatform: "onnxruntime_onnx"', "m/7/any", "onnx"),
        ('platform: "pytorch_libtorch"\nmax_batch_size: 8', "m/1/model.pt", "torchscript"),
        ('input [ { name: "platform: x" backend: "python" } ]', "m/1/model.pt", "torchscript"),
    ],
)
def test_the_version_of_an_entry_is_the_model(
    tmp_path: Path, config: str, name: str, kind: str
) -> None:
    model = linear() if kind == "onnx" else torchscript()
    report = look(tmp_path, config, {name: model, "m/labels.onnx": linear()})
    assert (report.kind, report.is_archive) == (kind, True)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ('backend: "python"', "python"),
        ('platform: "tensorrt_plan"', "tensorrt_plan"),
        ("platform: 'ensemble' ensemble_scheduling { step [] }", "ensemble"),
    ],
)
def test_other_backends_are_named(tmp_path: Path, config: str, found: str) -> None:
    failure = refused(tmp_path, config, {"m/1/model.onnx": linear()})
    assert (failure.code, failure.params) == ("triton_backend_unsupported", {"found": found})


def test_several_versions_are_listed(tmp_path: Path) -> None:
    files = {"m/1/model.onnx": linear(), "m/2/model.onnx": linear()}
    failure = refused(tmp_path, 'backend: "onnxruntime"', files)
    assert failure.code == "archive_several_models"
    assert failure.params == {"models": ["m/1", "m/2"]}


def test_an_entry_needs_a_version_with_such_a_file(tmp_path: Path) -> None:
    failure = refused(tmp_path, 'backend: "onnxruntime"', {"m/model.onnx": linear()})
    assert failure.code == "manifest_file_missing"


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    failure = refused(tmp_path, 'backend: "pytorch"', {"m/1/model.pt": linear()})
    assert failure.code == "manifest_file_differs"
    assert failure.params == {
        "manifest": "config.pbtxt",
        "name": "m/1",
        "kinds": ["torchscript"],
    }


@pytest.mark.parametrize("config", ["", "input [ {", "}{", "# nothing"])
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path, config: str) -> None:
    assert refused(tmp_path, config, {"m/1/model.onnx": linear()}).code == "manifest_damaged"
