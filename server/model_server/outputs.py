"""Writes answers: tensors in JSON, after it as bytes, or as classes."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import orjson

from server.model_server import binary, tensors
from server.model_server.classification import classify
from server.model_server.failures import ModelFailure
from server.model_server.runtimes.arrays import DATATYPES
from server.model_server.runtimes.base import Signature, TensorSpec

_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_MAX_HEADS = 512
"""How many beginnings of tensors are kept; there is one for each shape that was answered."""

_DIRECT = frozenset(np.dtype(name) for name in DATATYPES if name not in ("float16", "bfloat16"))
"""Types whose arrays become JSON as they are."""

_Head = Tuple[str, Any, Tuple[int, ...]]


class Form(NamedTuple):
    """How one output is to be written."""

    is_binary: bool = False
    classes: int = 0
    """How many classes of each row are asked for in its place; 0 for the output itself."""


_PLAIN = Form()


class Forms(NamedTuple):
    """How the outputs of one answer are to be written."""

    usual: Form
    by_name: Mapping[str, Form]

    def of(self, name: str) -> Form:
        """Return the form of one output."""
        return self.by_name.get(name, self.usual)


class Written(NamedTuple):
    """An answer's body in pieces.

    ``header_length`` is the length of the JSON if bytes of tensors follow it, else None.
    """

    pieces: Tuple[Any, ...]
    header_length: Optional[int] = None


class AnswerWriter:
    """Writes the answers of one model."""

    def __init__(self, signature: Signature, model_version: str) -> None:
        self._specs = {spec.name: spec for spec in signature.outputs}
        self._names = tuple(self._specs)
        self._version = orjson.dumps(model_version)
        self._starts: Dict[str, bytes] = {}
        self._heads: Dict[_Head, bytes] = {}
        self._entries: Dict[_Head, bytes] = {}

    def write(
        self,
        answer: Mapping[str, Any],
        model_name: str,
        request_id: Optional[str],
        names: Optional[Tuple[str, ...]],
        forms: Optional[Forms],
    ) -> Written:
        """Write the outputs asked for in that order, else all in the model's.

        Raises:
            ModelFailure: ``output_missing``, ``output_not_finite`` or
                ``output_datatype_unsupported``.
            BadInputError: ``classification_unsupported``.
        """
        parts = [self._starts.get(model_name) or self._start(model_name)]
        if request_id is not None:
            parts += (b',"id":', orjson.dumps(request_id))
        pieces: List[Any] = []
        joint = b',"outputs":['
        for name in names or self._names or tuple(answer):
            if name not in answer:
                raise ModelFailure("output_missing", tensor=name)
            parts.append(joint)
            joint = b","
            form = None if forms is None else forms.of(name)
            if form is None or form == _PLAIN:
                self._write_json(parts, name, answer[name])
            else:
                self._write_as(form, parts, pieces, name, answer[name])
        parts.append(b"]}" if joint == b"," else b',"outputs":[]}')
        header = b"".join(parts)
        return Written((header, *pieces), len(header)) if pieces else Written((header,))

    def _write_json(self, parts: List[bytes], name: str, array: Any) -> None:
        head = self._heads.get((name, array.dtype, array.shape))
        if head is None:
            head = self._head(name, array)
        if not head:
            parts.append(orjson.dumps(tensors.encode(name, array), option=_NUMPY))
            return
        data = orjson.dumps(array.ravel(), option=_NUMPY)
        # What is not finite is written as null, and nothing else has this letter.
        if b"n" in data:
            raise ModelFailure("output_not_finite", tensor=name)
        parts += (head, data, b"}")

    def _write_as(
        self, form: Form, parts: List[bytes], pieces: List[Any], name: str, array: Any
    ) -> None:
        if form.classes:
            spec = self._specs.get(name) or TensorSpec(name, "", None)
            array = classify(spec, array, form.classes)
        if not form.is_binary:
            parts.append(orjson.dumps(tensors.encode(name, array)))
            return
        key = (name, array.dtype, array.shape)
        entry = self._entries.get(key)
        if entry is not None:
            pieces.append(binary.packed(array))
        else:
            described, data = binary.encode(name, array)
            pieces.append(data)
            entry = orjson.dumps(described)
            # Of text each element has a size of its own.
            if array.dtype.name in DATATYPES and len(self._entries) < _MAX_HEADS:
                self._entries[key] = entry
        parts.append(entry)

    def _start(self, model_name: str) -> bytes:
        # There are few names: those under which the model is known.
        name = orjson.dumps(model_name)
        start = b'{"model_name":%b,"model_version":%b' % (name, self._version)
        if len(self._starts) < _MAX_HEADS:
            self._starts[model_name] = start
        return start

    def _head(self, name: str, array: Any) -> bytes:
        """Return what stands before the numbers of a tensor; nothing if they need care."""
        head = b""
        if array.dtype in _DIRECT:
            datatype = DATATYPES[array.dtype.name]
            entry = {"name": name, "datatype": datatype, "shape": list(array.shape)}
            head = orjson.dumps(entry)[:-1] + b',"data":'
        if len(self._heads) < _MAX_HEADS:
            self._heads[name, array.dtype, array.shape] = head
        return head
