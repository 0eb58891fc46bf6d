"""Reads the description of an MLflow model: which file is the model, and what wrote it.

Runs in the inspecting child too: the standard library and PyYAML.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.manifests import Described, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MLMODEL = "MLmodel"

# Flavour -> where its file is named, what the file may be, whose version is named where.
_FLAVOURS: dict[str, tuple[str, tuple[str, ...], tuple[str, str] | None]] = {
    "onnx": ("data", ("onnx",), None),
    "sklearn": ("pickled_model", ("sklearn", "skops"), ("scikit-learn", "sklearn_version")),
    "xgboost": ("data", ("xgboost", "sklearn"), ("xgboost", "xgb_version")),
    "lightgbm": ("data", ("lightgbm", "sklearn"), ("lightgbm", "lgb_version")),
    "pytorch": ("model_data", ("torchscript", "torch_export"), ("torch", "pytorch_version")),
}
_PYFUNC = "python_function"
_VERSION = re.compile(r"\d{1,4}(?:\.\d{1,6}){1,3}")


def described(name: str, text: str, members: Iterable[str]) -> Described:
    """Return what the MLmodel ``name`` of an archive says about its model.

    Raises:
        InspectionError: ``manifest_damaged``, ``mlflow_cloudpickle``,
            ``mlflow_flavour_unsupported``, ``manifest_file_missing``.
    """
    flavours = read_yaml(text, name).get("flavors")
    if not isinstance(flavours, dict) or not flavours:
        raise InspectionError("manifest_damaged", name=shown(name), evidence="no flavors")
    folder = name.rpartition("/")[0]
    for flavour, (key, kinds, version) in _FLAVOURS.items():
        said = flavours.get(flavour)
        if isinstance(said, dict):
            data = _path(folder, said.get(key), name)
            made = Described(
                manifest=MLMODEL, data=data, kinds=kinds, made_with=_made_with(said, version)
            )
            if not any(made.holds(member) for member in members):
                raise InspectionError("manifest_file_missing", manifest=MLMODEL, name=shown(data))
            return made
    raise _unsupported(flavours)


def _path(folder: str, said: Any, name: str) -> str:
    parts = [part for part in said.split("/") if part not in {"", "."}] if _is_text(said) else []
    if not parts or ".." in parts:
        raise InspectionError("manifest_damaged", name=shown(name), evidence="no model file")
    return "/".join([*([folder] if folder else []), *parts])


def _is_text(said: Any) -> bool:
    return isinstance(said, str) and 0 < len(said) < 500


def _made_with(said: Mapping[str, Any], version: tuple[str, str] | None) -> dict[str, str]:
    if version is None:
        return {}
    package, key = version
    wrote = said.get(key)
    public = wrote.partition("+")[0] if isinstance(wrote, str) else ""
    return {package: public} if _VERSION.fullmatch(public) else {}


def _unsupported(flavours: Mapping[Any, Any]) -> InspectionError:
    pyfunc = flavours.get(_PYFUNC)
    others = sorted(shown(str(name)) for name in flavours if name != _PYFUNC)
    is_pickled = isinstance(pyfunc, dict) and (
        pyfunc.get("python_model") or pyfunc.get("cloudpickle_version")
    )
    if is_pickled and not others:
        name = shown(str(pyfunc.get("python_model") or MLMODEL))  # type: ignore[union-attr]
        return InspectionError("mlflow_cloudpickle", name=name)
    return InspectionError(
        "mlflow_flavour_unsupported",
        found=others or [_PYFUNC],
        supported=list(_FLAVOURS),
    )
