"""The JSON bodies of Open Inference Protocol v2: read, checked, written; no HTTP here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import orjson

from server.model_server import tensors
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes.base import Signature, TensorSpec


@dataclass(frozen=True)
class InferRequest:
    """One prediction that was asked for: arrays by input name, in the model's order.

    ``outputs`` narrows the answer; None means all of them.
    """

    inputs: Dict[str, Any]
    outputs: Optional[Tuple[str, ...]] = None
    id: Optional[str] = None


def parse_infer(body: bytes, signature: Signature, *, takes_fp64: bool = False) -> InferRequest:
    """Read the body of an inference request.

    ``takes_fp64`` accepts FP64 for every numeric input, whatever width the model declares.

    Raises:
        BadInputError: the body is no JSON, or does not fit the protocol or the model.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInputError("request_not_json", line=error.lineno, column=error.colno) from None
    if not isinstance(request, dict):
        raise _malformed("request", "object", request)
    return InferRequest(
        inputs=_inputs(request, signature, takes_fp64),
        outputs=_outputs(request, signature),
        id=_optional(request, "id", str, "string"),
    )


def warm_up(
    given: Sequence[Mapping[str, Any]], signature: Signature, *, takes_fp64: bool = False
) -> InferRequest:
    """Read a passport's warm-up inputs: tensors of the protocol, or ``fill`` in place of data.

    Inputs of which the passport says nothing are zeros.

    Raises:
        BadInputError: they do not fit the signature.
    """
    by_name = {tensor.get("name"): dict(tensor) for tensor in given}
    inputs = {}
    for spec in signature.inputs:
        tensor = by_name.get(spec.name)
        if tensor is None:
            shape = [max(size, 1) for size in spec.shape or ()]
            tensor = {"datatype": spec.datatype, "shape": shape, "fill": 0}
        if "fill" in tensor:
            inputs[spec.name] = _filled(tensor)
        else:
            inputs[spec.name] = _decoded(tensor, spec, takes_fp64)
    return InferRequest(inputs=inputs)


def render_infer(
    request: InferRequest,
    answer: Mapping[str, Any],
    signature: Signature,
    *,
    model_name: str,
    model_version: str,
) -> bytes:
    """Write the body of an answer; outputs stand in the order asked for, else the model's.

    Raises:
        ModelFailure: the model's answer cannot be carried in JSON.
    """
    names = request.outputs
    if names is None:
        names = tuple(spec.name for spec in signature.outputs) or tuple(answer)
    written = []
    for name in names:
        if name not in answer:
            raise ModelFailure("output_missing", tensor=name)
        written.append(tensors.encode(name, answer[name]))
    body: Dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if request.id is not None:
        body["id"] = request.id
    body["outputs"] = written
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def metadata(
    signature: Signature, *, model_name: str, model_version: str, platform: str
) -> Dict[str, Any]:
    """Describe the model; a tensor of unknown rank is described without ``shape``."""
    return {
        "name": model_name,
        "versions": [model_version],
        "platform": platform,
        "inputs": [_described(spec) for spec in signature.inputs],
        "outputs": [_described(spec) for spec in signature.outputs],
    }


def signature_of(passport: Mapping[str, Any]) -> Optional[Signature]:
    """Read the signature out of a passport, or None if it holds none."""
    found = passport.get("signature")
    if not found:
        return None
    return Signature(
        inputs=tuple(_spec(tensor) for tensor in found["inputs"]),
        outputs=tuple(_spec(tensor) for tensor in found["outputs"]),
    )


def _spec(tensor: Mapping[str, Any]) -> TensorSpec:
    shape = tensor.get("shape")
    return TensorSpec(
        name=tensor["name"],
        datatype=tensor["datatype"],
        shape=None if shape is None else tuple(shape),
    )


def _described(spec: TensorSpec) -> Dict[str, Any]:
    tensor: Dict[str, Any] = {"name": spec.name, "datatype": spec.datatype}
    if spec.shape is not None:
        tensor["shape"] = list(spec.shape)
    return tensor


def _filled(tensor: Mapping[str, Any]) -> Any:
    dtype = tensors.numpy_dtype(tensor["datatype"])
    fill = tensor["fill"]
    if dtype.kind == "O":
        fill = fill.encode() if isinstance(fill, str) else b""
    return np.full(tuple(tensor["shape"]), fill, dtype=dtype)


def _malformed(field: str, expected: str, found: Any) -> BadInputError:
    return BadInputError(
        "field_malformed", field=field, expected=expected, found=tensors.json_name(found)
    )


def _optional(holder: Mapping[str, Any], field: str, kind: Any, expected: str) -> Any:
    """Return a field that may be left out; clients that write null mean the same."""
    value = holder.get(field)
    if value is not None and not isinstance(value, kind):
        raise _malformed(field, expected, value)
    return value


def _named(holder: Mapping[str, Any], field: str) -> List[Dict[str, Any]]:
    entries: List[Dict[str, Any]] = []
    for index, entry in enumerate(holder[field]):
        if not isinstance(entry, dict):
            raise _malformed(f"{field}[{index}]", "object", entry)
        if not isinstance(entry.get("name"), str):
            raise _malformed(f"{field}[{index}].name", "string", entry.get("name"))
        entries.append(entry)
    return entries


def _parameters(entry: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = entry.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _malformed(f"{field}[{entry['name']}].parameters", "object", value)
    return value


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs)


def _inputs(request: Mapping[str, Any], signature: Signature, takes_fp64: bool) -> Dict[str, Any]:
    if not isinstance(request.get("inputs"), list):
        raise _malformed("inputs", "array", request.get("inputs"))
    specs = {spec.name: spec for spec in signature.inputs}
    given: Dict[str, Dict[str, Any]] = {}
    for entry in _named(request, "inputs"):
        name = entry["name"]
        if name not in specs:
            raise BadInputError("tensor_unknown", tensor=name, expected=_names(signature.inputs))
        if name in given:
            raise BadInputError("tensor_repeated", tensor=name)
        given[name] = entry
    for spec in signature.inputs:
        if spec.name not in given:
            raise BadInputError(
                "tensor_missing",
                tensor=spec.name,
                datatype=spec.datatype,
                shape=tensors.shape_text(spec.shape),
            )
    return {name: _decoded(given[name], spec, takes_fp64) for name, spec in specs.items()}


def _decoded(tensor: Dict[str, Any], spec: TensorSpec, takes_fp64: bool) -> Any:
    parameters = _parameters(tensor, "inputs")
    if "binary_data_size" in parameters:
        raise BadInputError("binary_tensors_unsupported")
    return tensors.decode(
        tensor,
        spec,
        also=("FP64",) if takes_fp64 and tensors.is_numeric(spec.datatype) else (),
        content_type=str(parameters.get("content_type", "")),
    )


def _outputs(request: Mapping[str, Any], signature: Signature) -> Optional[Tuple[str, ...]]:
    # An empty list asks for everything, as no list does.
    if not _optional(request, "outputs", list, "array"):
        return None
    known = {spec.name for spec in signature.outputs}
    names: List[str] = []
    for entry in _named(request, "outputs"):
        name = entry["name"]
        if name not in known:
            raise BadInputError("output_unknown", tensor=name, expected=_names(signature.outputs))
        if name in names:
            raise BadInputError("output_repeated", tensor=name)
        _parameters(entry, "outputs")
        names.append(name)
    return tuple(names)
