"""ONNX models whose weights lie in other files: taken together, or refused."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect
from tests.support.onnx_files import bytes_field, external_tensor, linear, with_external_data
from tests.support.pickle_files import write, zipped

if TYPE_CHECKING:
    from pathlib import Path

    from server.artifacts.inspect import Report


def look(tmp_path: Path, content: bytes) -> Report:
    (tmp_path / "out").mkdir()
    return inspect(write(tmp_path, "upload", content), tmp_path / "out")


def refused(tmp_path: Path, content: bytes) -> InspectionError:
    with pytest.raises(InspectionError) as caught:
        look(tmp_path, content)
    return caught.value


WEIGHTS = struct.pack("<8f", *range(8))


@pytest.mark.parametrize("location", ["w.bin", "./parts/w.bin"])
def test_weights_in_the_same_archive_are_kept_beside_their_model(
    tmp_path: Path, location: str
) -> None:
    archive = {"net/any.onnx": with_external_data(location), "net/readme.md": b"text"}
    report = look(tmp_path, zipped({**archive, f"net/{location.removeprefix('./')}": WEIGHTS}))

    assert (report.kind, report.file) == ("onnx", "bundle/model.onnx")
    bundle = tmp_path / "out" / "bundle"
    assert (bundle / location).read_bytes() == WEIGHTS
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("w.bin", "net/v.bin"),
        ("w.bin", "w.bin"),
        ("../w.bin", "w.bin"),
        ("/etc/passwd", "net/w.bin"),
        ("", "net/w.bin"),
        ("model.onnx", "net/model.onnx"),
        ("any.onnx", "net/w.bin"),
    ],
)
def test_weights_that_are_not_beside_their_model_are_missing(
    tmp_path: Path, location: str, name: str
) -> None:
    failure = refused(
        tmp_path, zipped({"net/any.onnx": with_external_data(location), name: WEIGHTS})
    )
    assert failure.code == "onnx_external_file_missing"


def test_weights_that_are_too_short_are_missing(tmp_path: Path) -> None:
    outside = external_tensor("w", [8], "w.bin", length=len(WEIGHTS))
    archive = {
        "any.onnx": linear() + bytes_field(7, bytes_field(5, outside)),
        "w.bin": WEIGHTS[:-1],
    }
    failure = refused(tmp_path, zipped(archive))
    assert (failure.code, failure.params) == ("onnx_external_file_missing", {"name": "w.bin"})
