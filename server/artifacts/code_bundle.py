"""Takes a model that is code of its own: ``model.py`` with ``persephone.yaml`` beside it.

Nothing of it is run or imported here; all its files are laid out under their names, which were
checked when they were unpacked. Runs in the inspecting child too: the standard library and PyYAML.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.manifests import read_yaml
from server.artifacts.recognise import recognise
from server.artifacts.requested import ENVIRONMENT_FILES, REQUIREMENTS, requested
from server.artifacts.unpack import (
    SAMPLES,
    check_sample,
    head_of,
    manifest_in,
    nearest,
    requirements_in,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from server.artifacts.limits import Limits
    from server.artifacts.requested import Requested

MANIFEST = "persephone.yaml"
CODE = "model.py"
DATATYPES = (
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    *("FP16", "FP32", "FP64", "BYTES"),
)

_FIELDS = ("inputs", "outputs", "python")
_OF_TENSORS = ("name", "datatype", "shape")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_PYTHON = re.compile(r"3\.\d{1,2}(?:\.\d{1,2})?")
# Of files beside the folder; within it they are the code's own.
_MODELS = frozenset({"onnx", "pickle", "xgboost", "lightgbm"})
_MOST_SHOWN = 60
_MOST_TENSORS = 64
_MOST_DIMENSIONS = 8
_LARGEST_DIMENSION = 2**31 - 1


def root_of(names: list[str]) -> str | None:
    """Return the folder (with its slash) that holds the one manifest; None without one.

    Raises:
        InspectionError: ``archive_several_models`` or ``bundle_code_missing``.
    """
    found = sorted(name for name in names if name.rpartition("/")[2] == MANIFEST)
    if len(found) > 1:
        raise InspectionError("archive_several_models", models=[shown(name) for name in found])
    if not found:
        return None
    root = found[0].removesuffix(MANIFEST)
    if root + CODE not in names:
        raise InspectionError("bundle_code_missing", name=shown(root + CODE))
    return root


def take_bundle(
    parts: Mapping[str, Path], root: str, folder: Path, limits: Limits
) -> tuple[Requested, str | None]:
    """Lay a bundle out below ``folder``: ``code/declared.json``, its files in ``code/files``.

    Returns what it asks for, by the files beside its description, and the name of its sample, which
    is put beside.

    Raises:
        InspectionError: ``bundle_manifest_damaged``, ``bundle_field_unknown``,
            ``bundle_field_invalid``, ``bundle_name_repeated``, ``archive_name_repeated``,
            ``manifest_damaged``, or what is wrong with its requirements or its sample.
    """
    declared = declared_in(_manifest(parts[root + MANIFEST]))
    tensors = {name: declared[name] for name in ("inputs", "outputs")}
    asked, sample = lay_out(parts, root, folder, limits, tensors, model=CODE)
    return replace(asked, python=declared["python"] or asked.python), sample


def lay_out(
    parts: Mapping[str, Path],
    root: str,
    folder: Path,
    limits: Limits,
    declared: Mapping[str, Any],
    *,
    model: str,
) -> tuple[Requested, str | None]:
    """Put the files below ``root`` into ``code/files``, and ``declared`` beside them.

    Returns what the files ask for and the name of the sample; ``model`` is the code's own file.

    Raises:
        InspectionError: ``archive_name_repeated``, ``archive_several_models`` for a model outside of
            ``root``, ``manifest_damaged``, or what is wrong with the requirements or the sample.
    """
    files = folder / "code" / "files"
    files.mkdir(parents=True)
    sample = None
    others: list[str] = []
    requirements: dict[str, str] = {}
    manifests: dict[str, str] = {}
    for name, part in parts.items():
        inner = name.removeprefix(root)
        if not name.startswith(root):
            if recognise(head_of(part)).kind in _MODELS:
                others.append(name)
            part.unlink()
        else:
            if inner in SAMPLES:
                check_sample(name, part, limits)
                # The code may read it, too.
                shutil.copyfile(part, folder / inner)
            if inner == REQUIREMENTS:
                requirements[inner] = requirements_in(part)
            elif inner in ENVIRONMENT_FILES:
                manifests[inner] = manifest_in(part, name)
            _lay(part, files / inner, name)
    if others:
        models = [root + model, *others][:_MOST_SHOWN]
        raise InspectionError("archive_several_models", models=[shown(name) for name in models])
    for each in SAMPLES:
        if (folder / each).exists():
            sample = sample or each
    (folder / "code" / "declared.json").write_text(json.dumps(declared), encoding="utf-8")
    beside = partial(nearest, model=model)
    # What loads the code stays in: it is MLflow itself, where that has written the folder.
    return requested(requirements, manifests, beside, is_mlflow=False), sample


def _manifest(part: Path) -> dict[str, Any]:
    try:
        return read_yaml(manifest_in(part, MANIFEST), MANIFEST)
    except InspectionError as error:
        raise InspectionError("bundle_manifest_damaged", evidence=error.evidence) from None


def _lay(part: Path, place: Path, name: str) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part.rename(place)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        # One name is both a file and a folder.
        raise InspectionError("archive_name_repeated", name=shown(name)) from None


def declared_in(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest declares, every field checked: ``inputs``, ``outputs``, ``python``.

    Raises:
        InspectionError: ``bundle_field_unknown``, ``bundle_field_invalid`` or
            ``bundle_name_repeated``, with the field's name.
    """
    _refuse_unknown(said, _FIELDS, "")
    declared = {name: _tensors(said.get(name), name) for name in ("inputs", "outputs")}
    python = said.get("python")
    if python is not None and not (isinstance(python, str) and _PYTHON.fullmatch(python)):
        raise _invalid("python", '"3.11"', python)
    return {**declared, "python": python}


def _tensors(said: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(said, list) or not 0 < len(said) <= _MOST_TENSORS:
        raise _invalid(field, "[{name: x, datatype: FP32, shape: [-1, 4]}]", said)
    made = [_tensor(each, f"{field}[{number}]") for number, each in enumerate(said)]
    names = [each["name"] for each in made]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InspectionError(
                "bundle_name_repeated", field=f"{field}[{number}].name", name=name
            )
    return made


def _tensor(said: Any, field: str) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise _invalid(field, "{name: x, datatype: FP32, shape: [-1, 4]}", said)
    _refuse_unknown(said, _OF_TENSORS, f"{field}.")
    name, datatype, shape = said.get("name"), said.get("datatype"), said.get("shape")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _invalid(f"{field}.name", _NAME.pattern, name)
    if datatype not in DATATYPES:
        raise _invalid(f"{field}.datatype", ", ".join(DATATYPES), datatype)
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise _invalid(f"{field}.shape", "[-1, 4]", shape)
    for number, size in enumerate(shape):
        if type(size) is not int or not -1 <= size <= _LARGEST_DIMENSION:
            raise _invalid(f"{field}.shape[{number}]", "-1, 0, 1, 2, …", size)
    return {"name": name, "datatype": datatype, "shape": shape}


def _refuse_unknown(said: Mapping[Any, Any], known: tuple[str, ...], prefix: str) -> None:
    for name in said:
        if name not in known:
            raise InspectionError(
                "bundle_field_unknown", field=shown(f"{prefix}{name}"), known=list(known)
            )


def _invalid(field: str, expected: str, found: Any) -> InspectionError:
    said = "—" if found is None else shown(json.dumps(found, ensure_ascii=False, default=str))
    return InspectionError("bundle_field_invalid", field=field, expected=expected, found=said)
