"""Takes MLflow's models from code: a folder whose ``MLmodel`` names a Python file as the model.

Nothing of it is run or imported here. What goes in is read from the signature that the folder
declares. Runs in the inspecting child too: the standard library and PyYAML.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.artifacts.code_bundle import lay_out
from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.manifests import read_yaml
from server.artifacts.mlflow import MLMODEL
from server.artifacts.unpack import manifest_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from server.artifacts.limits import Limits
    from server.artifacts.requested import Requested

INPUT = "input"
"""Name of the one input that has none of its own."""

_PYFUNC = "python_function"
_MOST_INPUTS = 1024
_LAST_PART = re.compile(r"[^/\\]*$")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_COLUMNS = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "binary": "BYTES",
    "datetime": "BYTES",
}
_ELEMENTS = {
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    "bool": "BOOL",
    "str": "BYTES",
    "object": "BYTES",
    "bytes": "BYTES",
}
_TEXT = re.compile(r"[<>|=]?[US]\d*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """Where a model from code lies: the folder (with its slash), the code's file, the whole MLmodel."""

    root: str
    code: str
    said: Mapping[str, Any]
    is_of_windows: bool = False


def found_in(parts: Mapping[str, Path]) -> Coded | None:
    """Return the one model from code of an archive; None without one, or beside other MLmodels.

    Raises:
        InspectionError: ``manifest_damaged``, ``manifest_file_missing``.
    """
    names = [name for name in parts if name.rpartition("/")[2] == MLMODEL]
    if len(names) != 1:
        return None
    said = read_yaml(manifest_in(parts[names[0]], names[0]), names[0])
    flavours = said.get("flavors")
    pyfunc = flavours.get(_PYFUNC) if isinstance(flavours, dict) else None
    if not isinstance(pyfunc, dict) or set(flavours or ()) != {_PYFUNC}:
        return None
    path = pyfunc.get("model_code_path")
    if not isinstance(path, str) or not path:
        return None
    # It is the path on the machine that saved the model, and only its last part is in the folder.
    root, code = names[0].removesuffix(MLMODEL), _LAST_PART.search(path)[0]  # type: ignore[index]
    if root + code not in parts:
        raise InspectionError("manifest_file_missing", manifest=MLMODEL, name=shown(root + code))
    pyfunc["model_code_path"] = code
    return Coded(root=root, code=code, said=said, is_of_windows="\\" in path)


def take(
    parts: Mapping[str, Path], coded: Coded, folder: Path, limits: Limits
) -> tuple[Requested, str | None]:
    """Lay the model out as a bundle of code is; returns what it asks for, and its sample's name.

    Raises:
        InspectionError: ``mlflow_signature_missing``, ``mlflow_signature_unsupported``,
            ``manifest_damaged``, or as ``lay_out``.
    """
    declared = declared_in(coded.said)
    if coded.is_of_windows:
        # MLflow takes such a path for one name, which there is not.
        import yaml  # noqa: PLC0415 - few archives need it

        text = yaml.safe_dump(dict(coded.said), allow_unicode=True)
        parts[coded.root + MLMODEL].write_text(text, encoding="utf-8")
    return lay_out(parts, coded.root, folder, limits, declared, model=coded.code)


def declared_in(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an MLmodel declares: ``form``, ``inputs`` and the names of its ``outputs``.

    ``form`` is what the code is handed: ``tensor`` (an array), ``tensors`` (arrays by name),
    ``frame`` (a DataFrame with a column per input) or ``list``. Outputs are empty where they have
    no names.

    Raises:
        InspectionError: ``mlflow_signature_missing``, ``mlflow_signature_unsupported``,
            ``manifest_damaged``.
    """
    signature = said.get("signature")
    declared = signature if isinstance(signature, dict) else {}
    entries = _entries(declared.get("inputs"))
    if not entries:
        raise InspectionError("mlflow_signature_missing")
    of_tensors = [each.get("type") == "tensor" for each in entries]
    if len(set(of_tensors)) > 1 or len(entries) > _MOST_INPUTS:
        raise _damaged()
    make = _tensor if of_tensors[0] else _column
    inputs = [make(each, _name(each, number, entries)) for number, each in enumerate(entries)]
    if len({each["name"] for each in inputs}) < len(inputs):
        raise _damaged()
    is_list = bool(said.get("is_signature_from_type_hint"))
    outputs = [each.get("name") for each in _entries(declared.get("outputs"))]
    return {
        "form": _form(entries, is_tensor=of_tensors[0], is_list=is_list),
        "inputs": inputs,
        "outputs": outputs if all(isinstance(name, str) for name in outputs) else [],
    }


def _form(entries: list[dict[str, Any]], *, is_tensor: bool, is_list: bool) -> str:
    is_one = len(entries) == 1 and "name" not in entries[0]
    if is_tensor:
        return "tensor" if is_one else "tensors"
    # By a type hint, as list[str], the code takes the values themselves.
    return "list" if is_one and is_list else "frame"


def _entries(said: Any) -> list[dict[str, Any]]:
    """Return the list that a signature holds as a text in JSON."""
    try:
        entries = json.loads(said) if isinstance(said, str) else said
    except (ValueError, RecursionError):
        raise _damaged() from None
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise _damaged()
    return entries


def _name(entry: Mapping[str, Any], number: int, entries: list[dict[str, Any]]) -> str:
    name = entry.get("name")
    if name is None:
        return INPUT if len(entries) == 1 else f"{INPUT}_{number}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _damaged()
    return name


def _column(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    said = entry.get("type")
    datatype = _COLUMNS.get(said) if isinstance(said, str) else None
    if datatype is None:
        raise _unsupported(name, said)
    return {"name": name, "datatype": datatype, "shape": [-1], "type": said}


def _tensor(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    spec = entry.get("tensor-spec")
    said = spec.get("dtype") if isinstance(spec, dict) else None
    shape = spec.get("shape") if isinstance(spec, dict) else None
    if not isinstance(said, str) or not isinstance(shape, list):
        raise _damaged()
    datatype = "BYTES" if _TEXT.fullmatch(said) else _ELEMENTS.get(said)
    if datatype is None:
        raise _unsupported(name, said)
    if len(shape) > 8 or not all(type(size) is int and -1 <= size < 2**31 for size in shape):
        raise _damaged()
    return {"name": name, "datatype": datatype, "shape": shape, "type": said}


def _unsupported(name: str, said: Any) -> InspectionError:
    return InspectionError("mlflow_signature_unsupported", name=shown(name), found=shown(str(said)))


def _damaged() -> InspectionError:
    return InspectionError("manifest_damaged", name=MLMODEL, evidence="signature")
