"""Files of skops: told from other archives, and by which scikit-learn they were written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect
from tests.support.pickle_files import write, zipped

if TYPE_CHECKING:
    from pathlib import Path

    from server.artifacts.inspect import Report

VERSION = {"__class__": "str", "__loader__": "JsonNode", "content": '"1.6.1"', "__id__": 5}
SCHEMA: dict[str, Any] = {
    "__loader__": "ObjectNode",
    "content": {"content": {"_sklearn_version": VERSION}},
    "protocol": 2,
}


def look(tmp_path: Path, content: bytes) -> Report:
    (tmp_path / "out").mkdir()
    return inspect(write(tmp_path, "upload", content), tmp_path / "out")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_bare_file_tells_which_scikit_learn_wrote_it(tmp_path: Path, indent: int | None) -> None:
    schema = json.dumps(SCHEMA, indent=indent).encode()
    report = look(tmp_path, zipped({"schema.json": schema, "1402.npy": b"x"}))
    assert (report.kind, report.file, report.is_archive) == ("skops", "model.skops", False)
    assert report.made_with == {"scikit-learn": "1.6.1"}


def test_a_file_in_an_mlflow_folder_is_its_model(tmp_path: Path) -> None:
    inner = zipped({"schema.json": json.dumps(SCHEMA).encode()})
    said = b"flavors: {sklearn: {pickled_model: model.skops, sklearn_version: 1.6.1}}"
    report = look(tmp_path, zipped({"m/MLmodel": said, "m/model.skops": inner}))
    assert (report.kind, report.is_archive) == ("skops", True)


@pytest.mark.parametrize("schema", [b"{", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_damaged_description_is_refused(tmp_path: Path, schema: bytes) -> None:
    with pytest.raises(InspectionError) as caught:
        look(tmp_path, zipped({"schema.json": schema, "1.npy": b"x"}))
    assert caught.value.code == "skops_damaged"


def test_an_archive_with_some_schema_in_it_is_no_skops_file(tmp_path: Path) -> None:
    with pytest.raises(InspectionError) as caught:
        look(tmp_path, zipped({"schema.json": b"{}", "data.csv": b"1,2"}))
    assert caught.value.code == "archive_no_model"
