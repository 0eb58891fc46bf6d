"""Requests and answers of Open Inference Protocol v2: read, checked, written; no HTTP here."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import orjson

from server.model_server import binary, classification, tensors
from server.model_server.failures import BadInputError
from server.model_server.outputs import AnswerWriter, Form, Forms, Written
from server.model_server.quick import QuickReader
from server.model_server.runtimes.arrays import numpy_dtype
from server.model_server.runtimes.base import Signature, TensorSpec


class InferRequest(NamedTuple):
    """One prediction that was asked for: arrays by input name, in the model's order.

    ``outputs`` narrows the answer; None means all of them. ``forms`` says how they are to be
    written; None means JSON.
    """

    inputs: Dict[str, Any]
    outputs: Optional[Tuple[str, ...]] = None
    id: Optional[str] = None
    forms: Optional[Forms] = None


class InferCodec:
    """Reads requests for one model and writes its answers.

    ``takes_fp64`` accepts FP64 for every numeric input, whatever width the model declares.
    Made once per model; for one thread.
    """

    def __init__(self, signature: Signature, *, takes_fp64: bool, model_version: str) -> None:
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._also = {
            spec.name: ("FP64",) if takes_fp64 and tensors.is_numeric(spec.datatype) else ()
            for spec in signature.inputs
        }
        self._quick = QuickReader(signature, takes_fp64=takes_fp64)
        self._writer = AnswerWriter(signature, model_version)

    def parse(self, body: bytes, header_length: Optional[int] = None) -> InferRequest:
        """Read the body of a request: JSON, and tensors behind it if ``header_length`` is given.

        That is the length of the JSON in bytes.

        Raises:
            BadInputError: the body does not fit the protocol or the model.
        """
        if header_length is None:
            found = self._quick.read(body)
            if found is not None:
                inputs, others = found
                return self._asked(inputs, others) if others else InferRequest(inputs)
        data = memoryview(body)
        length = len(data) if header_length is None else header_length
        if not 0 <= length <= len(data):
            raise BadInputError("binary_header_length", found=length, size=len(data))
        try:
            request = orjson.loads(data[:length])
        except orjson.JSONDecodeError as error:
            if not body.strip():
                raise BadInputError("request_empty") from None
            raise BadInputError("request_not_json", line=error.lineno, column=error.colno) from None
        if not isinstance(request, dict):
            raise _malformed("request", "object", request)
        return self._asked(self._read_inputs(request, data[length:]), request)

    def render(self, asked: InferRequest, answer: Mapping[str, Any], model_name: str) -> Written:
        """Write the body of an answer; outputs stand in the order asked for, else the model's.

        Raises:
            ModelFailure: the model's answer cannot be carried as was asked.
            BadInputError: ``classification_unsupported``.
        """
        return self._writer.write(answer, model_name, asked.id, asked.outputs, asked.forms)

    # ── inputs

    def _read_inputs(self, request: Mapping[str, Any], data: memoryview) -> Dict[str, Any]:
        """Read tensors from the JSON and from the bytes behind it, in the request's order."""
        given = self._named_inputs(request)
        found: Dict[str, Any] = {}
        for name, tensor in given.items():
            spec = self._inputs[name]
            parameters = _parameters(tensor, f"inputs[{name}].parameters")
            _refuse_shared_memory(name, parameters)
            size = parameters.get("binary_data_size")
            if size is None:
                content_type = str(parameters.get("content_type", ""))
                found[name] = tensors.decode(
                    tensor, spec, also=self._also[name], content_type=content_type
                )
                continue
            _check_size(name, tensor, size, len(data))
            datatype, shape = tensors.declared(tensor, spec, also=self._also[name])
            found[name] = binary.decode(data[:size], spec, datatype, shape)
            data = data[size:]
        if data:
            raise BadInputError("binary_data_left_over", size=len(data))
        return {name: found[name] for name in self._inputs}

    def _named_inputs(self, request: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
        if not isinstance(request.get("inputs"), list):
            raise tensors.malformed(request, "inputs", "array")
        given: Dict[str, Dict[str, Any]] = {}
        for entry in _named(request, "inputs"):
            name = entry["name"]
            if name not in self._inputs:
                raise BadInputError("tensor_unknown", tensor=name, expected=_names(self._inputs))
            if name in given:
                raise BadInputError("tensor_repeated", tensor=name)
            given[name] = entry
        for name, spec in self._inputs.items():
            if name not in given:
                raise BadInputError(
                    "tensor_missing",
                    tensor=name,
                    datatype=spec.datatype,
                    shape=tensors.shape_text(spec.shape),
                )
        return given

    # ── what is asked for

    def _asked(self, inputs: Dict[str, Any], request: Mapping[str, Any]) -> InferRequest:
        request_id = _optional(request, "id", str, "string")
        parameters = _optional(request, "parameters", dict, "object") or {}
        usual = Form(bool(_flag(parameters, "binary_data_output", "parameters")))
        outputs, forms = self._asked_outputs(request, usual)
        if forms or usual.is_binary:
            return InferRequest(inputs, outputs, request_id, Forms(usual, forms))
        return InferRequest(inputs, outputs, request_id)

    def _asked_outputs(
        self, request: Mapping[str, Any], usual: Form
    ) -> Tuple[Optional[Tuple[str, ...]], Dict[str, Form]]:
        # An empty list asks for everything, as no list does.
        if not _optional(request, "outputs", list, "array"):
            return None, {}
        forms: Dict[str, Form] = {}
        names: Dict[str, None] = {}
        for entry in _named(request, "outputs"):
            name = entry["name"]
            if name not in self._outputs:
                raise BadInputError("output_unknown", tensor=name, expected=_names(self._outputs))
            if name in names:
                raise BadInputError("output_repeated", tensor=name)
            names[name] = None
            if entry.get("parameters") is not None:
                form = _form(entry, usual)
                if form.classes:
                    classification.check(self._outputs[name])
                if form != usual:
                    forms[name] = form
        return tuple(names), forms


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
            also = ("FP64",) if takes_fp64 and tensors.is_numeric(spec.datatype) else ()
            content_type = str((tensor.get("parameters") or {}).get("content_type", ""))
            inputs[spec.name] = tensors.decode(tensor, spec, also=also, content_type=content_type)
    return InferRequest(inputs=inputs)


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
    dtype = numpy_dtype(tensor["datatype"])
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
            raise tensors.malformed(entry, "name", "string", f"{field}[{index}].")
        entries.append(entry)
    return entries


def _parameters(entry: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = entry.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _malformed(field, "object", value)
    return value


def _flag(parameters: Mapping[str, Any], name: str, field: str) -> Optional[bool]:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise _malformed(f"{field}.{name}", "true or false", value)
    return value


def _form(entry: Mapping[str, Any], usual: Form) -> Form:
    field = f"outputs[{entry['name']}].parameters"
    parameters = _parameters(entry, field)
    _refuse_shared_memory(entry["name"], parameters)
    is_binary = _flag(parameters, "binary_data", field)
    classes = parameters.get("classification")
    if classes is None:
        classes = 0
    elif type(classes) is not int or classes < 1:
        raise _malformed(f"{field}.classification", "whole number above 0", classes)
    return Form(usual.is_binary if is_binary is None else is_binary, classes)


def _refuse_shared_memory(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse what would be answered elsewhere than where the caller looks for it."""
    if "shared_memory_region" in parameters:
        raise BadInputError("shared_memory_unsupported", tensor=name)


def _check_size(name: str, tensor: Mapping[str, Any], size: Any, left: int) -> None:
    if type(size) is not int or size < 0:
        raise _malformed(f"inputs[{name}].parameters.binary_data_size", "whole number", size)
    # Null is how some clients write the data of a tensor that has no bytes.
    if tensor.get("data") is not None:
        raise BadInputError("binary_data_twice", tensor=name)
    if size > left:
        raise BadInputError("binary_data_missing", tensor=name, expected=size, found=left)


def _names(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(specs)
