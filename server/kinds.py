"""Every kind of model, one row each: what runs it, in which files it lies, what it needs.

Runs in the inspecting child and in model processes too: the standard library only, Python 3.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    ``runtime`` is the module below ``server.model_server.runtimes`` and its class; ``files`` are the
    names that the model's file gets in its folder, by format; ``packages`` run it where the upload
    says nothing else. ``is_data`` tells that it holds nothing that could be run as code, so that it
    needs no sandbox.
    """

    runtime: tuple[str, str]
    files: Mapping[str, str]
    packages: tuple[str, ...]
    is_data: bool = False


_SKLEARN = ("scikit-learn==1.9.1", "joblib>=1.6", "scipy", "numpy")

KINDS: Mapping[str, Kind] = {
    "onnx": Kind(
        ("onnx", "OnnxRuntime"),
        {"onnx": "model.onnx", "onnx_folder": "bundle/model.onnx"},
        ("onnxruntime==1.32.0",),
        is_data=True,
    ),
    "torchscript": Kind(
        ("torchscript", "TorchScriptRuntime"),
        {"torchscript": "model.pt"},
        ("torch==2.13.0", "numpy"),
    ),
    "torch_export": Kind(
        ("torch_export", "TorchExportRuntime"),
        {"torch_export": "model.pt2"},
        ("torch==2.13.0", "numpy"),
    ),
    "sklearn": Kind(
        ("sklearn", "SklearnRuntime"),
        {"pickle": "model.pkl", "joblib": "model.joblib"},
        _SKLEARN,
    ),
    "skops": Kind(
        ("skops", "SkopsRuntime"), {"skops": "model.skops"}, (*_SKLEARN, "skops>=0.11,<0.17")
    ),
    "xgboost": Kind(
        ("xgboost", "XgboostRuntime"), {"xgboost": "model.xgb"}, ("xgboost==3.2.0", "numpy")
    ),
    "lightgbm": Kind(
        ("lightgbm", "LightgbmRuntime"), {"lightgbm": "model.lgb"}, ("lightgbm==4.7.0", "numpy")
    ),
    "code": Kind(("code", "CodeRuntime"), {"code": "code/declared.json"}, ("numpy",)),
    "mlflow": Kind(
        ("mlflow", "MlflowRuntime"),
        {"mlflow": "code/declared.json"},
        ("mlflow-skinny==3.17.2", "numpy", "pandas"),
    ),
}
"""By name. Which bytes are of which kind is told by ``server.artifacts``."""

FORMATS: Mapping[str, tuple[str, str]] = {
    format_: (name, file) for name, kind in KINDS.items() for format_, file in kind.files.items()
}
"""Kind and name of the file, by format."""
