"""Programs of torch.export: which torch wrote them, and what of them cannot be served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect
from server.environments.plan import plan
from tests.support.exported_files import exported, program
from tests.support.pickle_files import pickled, state_dict, torch_saved, write, zipped

if TYPE_CHECKING:
    from pathlib import Path

    from server.artifacts.inspect import Report

SYSTEM = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R."


def look(tmp_path: Path, content: bytes) -> Report:
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    return inspect(write(tmp_path, "upload", content), folder)


@pytest.mark.parametrize(
    ("version", "made_with"),
    [("2.13.0+cpu", {"torch": "2.13.0"}), (None, {}), ("2.14.0.dev2026", {}), ([], {})],
)
def test_a_program_tells_which_torch_wrote_it(
    tmp_path: Path, version: Any, made_with: dict[str, str]
) -> None:
    report = look(tmp_path, exported(program(version=version)))
    assert (report.kind, report.file) == ("torch_export", "model.pt2")
    assert report.made_with == made_with


def test_the_older_layout_is_told_too(tmp_path: Path) -> None:
    files = {
        "version": b"8.8",
        "serialized_exported_program.json": program(version=None),
        "serialized_state_dict.pt": torch_saved(state_dict()),
    }
    assert look(tmp_path, zipped(files)).kind == "torch_export"


def test_a_program_is_found_in_an_archive_and_in_a_folder_of_mlflow(tmp_path: Path) -> None:
    said = b"flavors: {pytorch: {model_data: data, pytorch_version: 2.12.1}}"
    report = look(tmp_path, zipped({"MLmodel": said, "data/model.pt2": exported()}))
    assert (report.kind, report.made_with) == ("torch_export", {"torch": "2.13.0"})


@pytest.mark.parametrize(
    ("wrote", "torch"), [("2.8.0", "2.13.0"), ("2.14.1", "2.14.1"), ("odd", "2.13.0")]
)
def test_a_newer_torch_is_taken_where_it_wrote_the_program(wrote: str, torch: str) -> None:
    made = plan("torch_export", "torch_export", None, "cpu", {"torch": wrote})
    assert made.requirements == ("numpy", f"torch=={torch}")
    asked = plan("torch_export", "torch_export", "torch==2.9.1+cu128", "cpu", {"torch": wrote})
    assert asked.requirements == ("numpy", "torch==2.9.1")


@pytest.mark.parametrize(
    ("content", "code", "params"),
    [
        (exported(**{"data/aotinductor/model/x.so": b""}), "exported_program_compiled", {}),
        (
            exported(**{"data/constants/opaque_obj_0": b"\x80\x04N."}),
            "exported_program_custom_object",
            {"name": "net/data/constants/opaque_obj_0"},
        ),
        (
            exported(program({"buffer_mutation": {"arg": {}, "buffer_name": "bn.mean"}})),
            "exported_program_changes_itself",
            {"name": "bn.mean"},
        ),
        (
            exported(program({"user_input_mutation": {"arg": {}, "user_input_name": "x"}})),
            "exported_program_changes_itself",
            {"name": "x"},
        ),
        (
            exported(**{"models/other.json": b"{}"}),
            "archive_several_models",
            {"models": ["net/models/model.json", "net/models/other.json"]},
        ),
        (exported(b"{"), "exported_program_damaged", {}),
        (exported(b"[]"), "exported_program_damaged", {}),
        (exported(b"[" * 100_000), "exported_program_damaged", {}),
        (exported(b'{"graph_module": []}'), "exported_program_damaged", {}),
        (zipped({"net/archive_format": b"pt2"}), "exported_program_damaged", {}),
        (
            zipped({"net/archive_format": b"pt2", "net/models/a.json": program()}),
            "exported_program_damaged",
            {},
        ),
    ],
)
def test_what_cannot_be_served_is_named(
    tmp_path: Path, content: bytes, code: str, params: dict[str, Any]
) -> None:
    with pytest.raises(InspectionError) as caught:
        look(tmp_path, content)
    assert (caught.value.code, caught.value.params) == (code, params)


@pytest.mark.parametrize(
    "name", ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/weights/weight_1"]
)
@pytest.mark.parametrize("pack", [torch_saved, bytes])
def test_a_call_in_what_torch_would_unpickle_is_seen(tmp_path: Path, name: str, pack: Any) -> None:
    with pytest.raises(InspectionError) as caught:
        look(tmp_path, exported(**{name: pack(SYSTEM)}))
    assert caught.value.code == "pickle_dangerous"


def test_tensors_that_torch_pickles_are_let_pass(tmp_path: Path) -> None:
    inside = {
        "data/sample_inputs/model.pt": torch_saved(state_dict()),
        "data/constants/tensor_0": torch_saved(pickled("torch.Size", protocol=2)),
    }
    assert look(tmp_path, exported(**inside)).kind == "torch_export"
