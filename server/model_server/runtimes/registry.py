"""Which runtime loads which kind of model."""

from __future__ import annotations

import importlib
from typing import Dict, Tuple

from server.model_server.failures import ModelFailure
from server.model_server.runtimes.base import Runtime

RUNTIMES: Dict[str, Tuple[str, str]] = {
    "onnx": ("onnx", "OnnxRuntime"),
    "torchscript": ("torchscript", "TorchScriptRuntime"),
    "sklearn": ("sklearn", "SklearnRuntime"),
}
"""Module and class by kind; imported only when that kind is wanted."""


def create(kind: str) -> Runtime:
    """Make the runtime of one kind, nothing loaded yet.

    Raises:
        ModelFailure: ``kind_unsupported`` if no runtime loads such a model.
    """
    if kind not in RUNTIMES:
        raise ModelFailure("kind_unsupported", kind=str(kind)[:32], kinds=", ".join(RUNTIMES))
    module, name = RUNTIMES[kind]
    made: Runtime = getattr(importlib.import_module(f"{__package__}.{module}"), name)()
    return made
