"""Runs models that are code of their own: the class ``Model`` of a bundle's ``model.py``.

What goes in and comes out was declared in ``persephone.yaml`` and is held to that here.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, ClassVar, Dict, Mapping, Optional, Sequence

import numpy as np

from server.model_server.failures import ModelFailure
from server.model_server.runtimes import code_import
from server.model_server.runtimes.arrays import datatype_of, encode_text, numpy_dtype
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec, tensor_specs
from server.model_server.samples import fits
from server.model_server.tensors import shape_text

_PACKAGES = (
    *("numpy", "torch", "transformers", "tensorflow", "onnxruntime", "scikit-learn", "scipy"),
    *("xgboost", "xgboost-cpu", "lightgbm", "catboost", "jax", "keras", "pandas"),
)


class CodeRuntime(Runtime):
    """One object of the bundle's class; it is asked by one thread at a time."""

    kind: ClassVar[str] = "code"
    names_failures: ClassVar[bool] = True

    def __init__(self) -> None:
        self._folder = Path()
        self._model: Any = None
        self._outputs: Dict[str, TensorSpec] = {}

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        """Import ``model.py``, make its ``Model`` and let it load.

        Raises:
            ModelFailure: ``bundle_code_invalid``, ``bundle_module_missing``,
                ``bundle_import_raised``, ``bundle_class_missing``, ``bundle_method_missing`` or
                ``bundle_load_raised``.
        """
        del threads  # its libraries read OMP_NUM_THREADS
        declared = json.loads(Path(path).read_text(encoding="utf-8"))
        self._folder = Path(path).parent / "files"
        signature = Signature(tensor_specs(declared["inputs"]), tensor_specs(declared["outputs"]))
        self._outputs = {spec.name: spec for spec in signature.outputs}
        made = code_import.model_class(self._folder)
        with code_import.blamed("bundle_load_raised", self._folder):
            self._model = made()
            self._model.load(str(self._folder), device)
        return Loaded(
            signature=signature,
            framework="python",
            framework_version=platform.python_version(),
            device="cuda" if device == "cuda" and code_import.uses_cuda() else "cpu",
            packages=_PACKAGES,
        )

    def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Ask the model, and hold its answer to what was declared.

        Raises:
            ModelFailure: ``bundle_predict_raised``, ``bundle_outputs_not_mapping``,
                ``bundle_output_undeclared``, ``bundle_output_missing``,
                ``bundle_output_datatype`` or ``bundle_output_shape``.
        """
        # It is the model's own to change.
        given = {name: _writeable(array) for name, array in inputs.items()}
        with code_import.blamed("bundle_predict_raised", self._folder):
            answer = self._model.predict(given)
            if isinstance(answer, Mapping):
                answer = {name: _plain(item) for name, item in answer.items()}
        if not isinstance(answer, dict):
            raise ModelFailure("bundle_outputs_not_mapping", found=type(answer).__name__[:100])
        for name in answer:
            if name not in self._outputs:
                raise ModelFailure(
                    "bundle_output_undeclared",
                    name=str(name)[:100],
                    declared=", ".join(self._outputs),
                )
        checked = {}
        for name, spec in self._outputs.items():
            if name not in answer:
                raise ModelFailure("bundle_output_missing", name=name)
            checked[name] = _checked(spec, answer[name])
        return checked if outputs is None else {name: checked[name] for name in outputs}


def _writeable(array: Any) -> Any:
    return array if array.flags.writeable else array.copy()


def _plain(item: Any) -> Any:
    """Take tensors off their device; everything else numpy reads, or is a list."""
    if hasattr(item, "detach"):
        item = item.detach().cpu()
    return item if isinstance(item, (list, tuple)) else np.asarray(item)


def _checked(spec: TensorSpec, item: Any) -> Any:
    array = _of_list(spec, item) if isinstance(item, (list, tuple)) else item
    found = datatype_of(array)
    if array.dtype.kind == "O":
        others = (type(one).__name__ for one in array.ravel() if not isinstance(one, (str, bytes)))
        found = next(others, found)
    if found != spec.datatype:
        raise ModelFailure(
            "bundle_output_datatype",
            name=spec.name,
            expected=spec.datatype,
            found=found or str(array.dtype),
        )
    if not fits(array.shape, spec.shape or ()):
        raise ModelFailure(
            "bundle_output_shape",
            name=spec.name,
            expected=shape_text(spec.shape),
            found=shape_text(array.shape),
        )
    return (
        encode_text(array) if found == "BYTES" else np.ascontiguousarray(array).reshape(array.shape)
    )


def _of_list(spec: TensorSpec, item: Any) -> Any:
    """Make an array of a list; its numbers have no width of their own, so the declared one is taken.

    Raises:
        ModelFailure: ``bundle_output_shape`` for rows of unequal lengths.
    """
    try:
        array = np.array(item, dtype=object if spec.datatype == "BYTES" else None)
    except (ValueError, TypeError):
        raise ModelFailure(
            "bundle_output_shape", name=spec.name, expected=shape_text(spec.shape), found="[…]"
        ) from None
    wanted = numpy_dtype(spec.datatype)
    is_whole = array.dtype.kind in "iu" or not array.size
    if (array.dtype.kind == "f" and wanted.kind == "f") or (is_whole and wanted.kind in "iuf"):
        converted = array.astype(wanted)
        # A number beyond the declared type is none of it.
        return converted if wanted.kind == "f" or np.array_equal(converted, array) else array
    return array
