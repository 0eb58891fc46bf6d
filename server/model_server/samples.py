"""Reads the sample that an archive may carry beside its model.

``sample.npz`` holds one array per input, by its name or in the inputs' order.
``sample.json`` holds ``{"inputs": [tensors of the Open Inference Protocol]}`` or
``{name: nested list}``.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import numpy as np
import orjson

from server.model_server import tensors
from server.model_server.evidence import one_line
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes.arrays import (
    DATATYPES,
    FLOATS,
    encode_text,
    is_float,
    numpy_dtype,
)
from server.model_server.runtimes.base import Signature, TensorSpec
from server.scrubbing import scrubbed

_MAX_JSON_BYTES = 64 * 1024 * 1024
_POSITIONAL = re.compile(r"^arr_\d+$")


def read_sample(path: str, signature: Signature, *, shapes_bind: bool) -> Dict[str, Any]:
    """Read a sample into arrays by input name, of the types that the model declares.

    ``shapes_bind`` says that the signature's shapes were declared by the model; guessed ones
    give way to the sample.

    Raises:
        ModelFailure: ``sample_unreadable``, ``sample_names_differ`` or ``sample_does_not_fit``.
    """
    given = _by_name(_load(path), signature)
    return {
        spec.name: _fitted(given[spec.name], spec, shapes_bind=shapes_bind)
        for spec in signature.inputs
    }


def _load(path: str) -> Dict[str, Any]:
    try:
        return _load_npz(path) if path.endswith(".npz") else _load_json(path)
    except ModelFailure:
        raise
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ModelFailure("sample_unreadable", evidence=one_line(error)) from error


def _load_npz(path: str) -> Dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        if isinstance(arrays, np.ndarray):
            raise ValueError("one array, not an npz archive")  # noqa: TRY004 - caught above
        return {name: arrays[name] for name in arrays.files}


def _load_json(path: str) -> Dict[str, Any]:
    file = Path(path)
    if file.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError("sample.json is larger than 64 MiB")
    content = orjson.loads(file.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("sample.json holds no object")  # noqa: TRY004 - caught above
    if isinstance(content.get("inputs"), list) and _are_tensors(content["inputs"]):
        return {tensor["name"]: _decoded(tensor) for tensor in content["inputs"]}
    return {name: np.array(value) for name, value in content.items()}


def _are_tensors(items: List[Any]) -> bool:
    return bool(items) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and "data" in item
        for item in items
    )


def _decoded(tensor: Dict[str, Any]) -> Any:
    spec = TensorSpec(tensor["name"], str(tensor.get("datatype")), None)
    try:
        return tensors.decode(tensor, spec)
    except BadInputError as error:
        details = ", ".join(f"{key}: {value}" for key, value in error.params.items())
        raise ModelFailure("sample_unreadable", evidence=scrubbed(details)) from error


def _by_name(given: Mapping[str, Any], signature: Signature) -> Dict[str, Any]:
    wanted = [spec.name for spec in signature.inputs]
    if set(wanted) <= set(given):
        return dict(given)
    nameless = all(_POSITIONAL.match(name) for name in given) or len(wanted) == 1
    if nameless and len(given) == len(wanted):
        return dict(zip(wanted, given.values()))
    raise ModelFailure(
        "sample_names_differ",
        expected=scrubbed(", ".join(wanted))[:150],
        found=scrubbed(", ".join(given))[:150],
    )


def _fitted(array: Any, spec: TensorSpec, *, shapes_bind: bool) -> Any:
    binding = spec.shape if shapes_bind and spec.shape != () else None
    if binding is not None and not fits(array.shape, binding):
        raise _misfit(spec, tensors.shape_text(binding), tensors.shape_text(array.shape))
    if spec.datatype == "BYTES":
        return encode_text(array)
    found = DATATYPES.get(array.dtype.name)
    if found is None:
        raise _misfit(spec, spec.datatype, "BYTES" if array.dtype.kind in "OSU" else "?")
    if spec.shape is None and not (is_float(array.dtype) and spec.datatype in FLOATS):
        # Nothing but the sample says what the model wants.
        return np.ascontiguousarray(array)
    return _converted(array, spec, found)


def _converted(array: Any, spec: TensorSpec, found: str) -> Any:
    wanted = numpy_dtype(spec.datatype)
    with np.errstate(all="ignore"):
        converted = np.array(array, dtype=wanted, order="C")
    both_float = is_float(wanted) and is_float(array.dtype)
    if not both_float and not np.array_equal(converted, array):
        raise _misfit(spec, spec.datatype, found)
    return converted


def _misfit(spec: TensorSpec, expected: str, found: str) -> ModelFailure:
    return ModelFailure("sample_does_not_fit", tensor=spec.name, expected=expected, found=found)


def fits(shape: Tuple[int, ...], declared: Tuple[int, ...]) -> bool:
    """Whether a shape is one of those that a declared one allows."""
    return len(shape) == len(declared) and all(
        want in (-1, size) for want, size in zip(declared, shape)
    )
