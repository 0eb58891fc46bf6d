"""Runs ONNX models with onnxruntime."""

from __future__ import annotations

import ctypes
import logging
import re
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np

from server.model_server.evidence import is_out_of_memory
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes.arrays import (
    batched,
    bfloat16,
    datatype_of,
    decode_text,
    encode_text,
    is_bfloat16,
)
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec
from server.model_server.runtimes.onnx_graph import read_facts
from server.scrubbing import scrubbed

logger = logging.getLogger(__name__)

_TENSOR = re.compile(r"^tensor\((\w+)\)$")
_ZIPMAP = re.compile(r"^seq\(map\((?:int64|string),tensor\((float|double)\)\)\)$")
_DATATYPES = {
    "float16": "FP16",
    "bfloat16": "BF16",
    "float": "FP32",
    "double": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
    "string": "BYTES",
}

_ONNX_BFLOAT16 = 16
"""The number of this type in the ONNX standard."""

_CAUSES: Tuple[Tuple[str, str], ...] = (
    ("onnx_opset_too_new", r"Unsupported model IR version"),
    ("onnx_opset_too_new", r"ONNX Runtime only \*?guarantees\*? support for models"),
    ("onnx_opset_too_new", r"Current official support for domain"),
    ("onnx_missing_external_data", r"[Ee]xternal data|external initializer|cannot get file size"),
    ("onnx_operator_missing", r"Could not find an implementation for (?P<name>[\w.]+)"),
    ("onnx_operator_missing", r"No Op registered for (?P<name>[\w.]+)"),
    ("onnx_operator_missing", r"(?P<name>[\w.:]+?)\(-?\d+\) is not a registered function/op"),
)
"""Codes and what onnxruntime says in that case."""


_PACKED_GRAPH = "model.onnx"
_PACKING = {
    "optimized_model_external_initializers_file_name": "weights.bin",
    "optimized_model_external_initializers_min_size_in_bytes": "4096",
    "save_external_prepacked_constant_initializers": "1",
}
"""What onnxruntime has to be told to save weights apart, as its kernels want them."""


class OnnxRuntime(Runtime):
    """One onnxruntime session."""

    kind: ClassVar[str] = "onnx"
    is_concurrent: ClassVar[bool] = True

    def __init__(self) -> None:
        self._session: Any = None
        self._signature = Signature((), ())
        self._text_inputs: Set[str] = set()
        self._text_outputs: Set[str] = set()
        self._zipmaps: Dict[str, Any] = {}
        self._values: Any = None
        self._foreign: Set[str] = set()

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        """Open a session on the file, on the GPU if that is asked for and possible."""
        import onnxruntime as ort

        session = self._open(ort, path, _options(ort, threads), device)
        return self._take(ort, session, path, on_cpu=device == "cpu")

    def pack(self, path: str, folder: str) -> None:
        """Let onnxruntime save the graph that it made of the file, weights apart."""
        import onnxruntime as ort

        options = _options(ort, 1)
        options.optimized_model_filepath = f"{folder}/{_PACKED_GRAPH}"
        for name, value in _PACKING.items():
            options.add_session_config_entry(f"session.{name}", value)
        self._open(ort, path, options, "cpu")

    def load_packed(self, path: str, folder: str, *, threads: int) -> Loaded:
        """Open a session on what ``pack`` has saved."""
        import onnxruntime as ort

        options = _options(ort, threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = self._open(ort, f"{folder}/{_PACKED_GRAPH}", options, "cpu")
        return self._take(ort, session, path, on_cpu=True)

    def _take(self, ort: Any, session: Any, path: str, *, on_cpu: bool) -> Loaded:
        self._session = session
        self._values = getattr(ort, "OrtValue", None)
        facts = read_facts(path)
        self.is_bounded = on_cpu and facts.is_bounded
        self.may_mix_rows = facts.may_mix_rows
        self._signature = self._read_signature()
        on_gpu = self._session.get_providers()[:1] == ["CUDAExecutionProvider"]
        return Loaded(
            signature=self._signature,
            framework="onnxruntime",
            framework_version=str(ort.__version__),
            device="cuda" if on_gpu else "cpu",
            packages=("onnxruntime", "onnxruntime-gpu", "numpy"),
            warnings=tuple(
                {"code": "onnx_zipmap_flattened", "params": {"name": name}}
                for name in self._zipmaps
            ),
        )

    def _open(self, ort: Any, path: str, options: Any, device: str) -> Any:
        providers = ["CPUExecutionProvider"]
        if device == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
            # CUDA's libraries come as wheels; the loader does not look for them there by itself.
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
            providers.insert(0, "CUDAExecutionProvider")
        try:
            return ort.InferenceSession(path, options, providers=providers)
        except MemoryError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error).split("failed:", 1)[-1]) from error
            raise _load_failure(error) from error

    def _read_signature(self) -> Signature:
        inputs = tuple(self._spec(node, "input") for node in self._session.get_inputs())
        outputs = tuple(self._spec(node, "output") for node in self._session.get_outputs())
        self._text_inputs = {spec.name for spec in inputs if spec.datatype == "BYTES"}
        self._text_outputs = {spec.name for spec in outputs if spec.datatype == "BYTES"}
        self._foreign = {spec.name for spec in (*inputs, *outputs) if spec.datatype == "BF16"}
        if self._foreign and self._text_inputs:
            # Values that are bound are never text.
            name = min(self._foreign)
            raise ModelFailure("onnx_type_unsupported", name=name[:100], type="tensor(bfloat16)")
        return Signature(inputs, outputs)

    def _spec(self, node: Any, role: str) -> TensorSpec:
        zipmap = _ZIPMAP.match(node.type) if role == "output" else None
        if zipmap is not None:
            number = np.float32 if zipmap.group(1) == "float" else np.float64
            self._zipmaps[node.name] = number
            return TensorSpec(node.name, _DATATYPES[zipmap.group(1)], (-1, -1))
        tensor = _TENSOR.match(node.type)
        datatype = _DATATYPES.get(tensor.group(1)) if tensor is not None else None
        is_missing = datatype == "BF16" and not hasattr(
            self._values, "ortvalue_from_numpy_with_onnx_type"
        )
        if datatype is None or is_missing:
            raise ModelFailure(
                "onnx_type_unsupported", name=str(node.name)[:100], type=str(node.type)[:100]
            )
        shape = tuple(dim if isinstance(dim, int) and dim > 0 else -1 for dim in (node.shape or ()))
        return TensorSpec(node.name, datatype, shape)

    def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Run the session once."""
        feed = dict(inputs)
        for name in self._text_inputs:
            feed[name] = _text(name, feed[name])
        names = (
            list(outputs)
            if outputs is not None
            else [spec.name for spec in self._signature.outputs]
        )
        # onnxruntime takes arrays of numpy's own types only.
        run = self._run_bound if self._foreign else self._session.run
        answers = dict(zip(names, run(names, feed)))
        for name in names:
            if name in self._zipmaps:
                answers[name] = _flat(answers[name], self._zipmaps[name], self._width(name))
            elif name in self._text_outputs:
                answers[name] = encode_text(answers[name])
        return answers

    def _run_bound(self, names: Sequence[str], feed: Mapping[str, Any]) -> List[Any]:
        """Run the session on values of its own, since an input or output is BF16."""
        bound = self._session.io_binding()
        # Some of them only point to an array, and have to live as long as the run.
        values = {name: self._value(array) for name, array in feed.items()}
        for name, value in values.items():
            bound.bind_ortvalue_input(name, value)
        for name in names:
            bound.bind_output(name, "cpu")
        self._session.run_with_iobinding(bound)
        return [_array(value) for value in bound.get_outputs()]

    def _value(self, array: Any) -> Any:
        array = np.ascontiguousarray(array) if array.ndim else array
        if not is_bfloat16(array.dtype):
            return self._values.ortvalue_from_numpy(array)
        bits = array.view(np.uint16)
        return self._values.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)

    def _width(self, name: str) -> int:
        """Columns of a ZipMap's output, 0 while they are unknown."""
        shapes = [spec.shape for spec in self._signature.outputs if spec.name == name]
        return max(shapes[0][1], 0) if shapes and shapes[0] is not None else 0

    def adopt(self, signature: Signature) -> None:
        """Take the classes of a ZipMap from what was proven before."""
        self._signature = signature

    def describe(self, outputs: Mapping[str, Any]) -> Optional[Signature]:
        """Fill in what the file leaves out: the rank of an output, the classes of a ZipMap."""
        sharper: List[TensorSpec] = []
        for spec in self._signature.outputs:
            array = outputs.get(spec.name)
            if array is None:
                sharper.append(spec)
            elif spec.name in self._zipmaps:
                sharper.append(TensorSpec(spec.name, spec.datatype, batched(array.shape)))
            elif spec.shape == () and array.shape != ():
                # A file that says nothing about a shape reads like one that says "scalar".
                anything = (-1,) * array.ndim
                sharper.append(TensorSpec(spec.name, datatype_of(array) or spec.datatype, anything))
            else:
                sharper.append(spec)
        if tuple(sharper) == self._signature.outputs:
            return None
        self._signature = Signature(self._signature.inputs, tuple(sharper))
        return self._signature


def _array(value: Any) -> Any:
    """Copy a value of onnxruntime's into an array; of BF16 it gives away the address only."""
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())
    array = np.empty(shape, dtype=bfloat16())
    if array.nbytes:
        ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _text(name: str, array: Any) -> Any:
    try:
        return decode_text(array)
    except UnicodeDecodeError:
        raise BadInputError("bytes_not_utf8", name=name) from None


def _flat(rows: Sequence[Mapping[Any, float]], number: Any, width: int) -> Any:
    """Make a ZipMap's dictionaries one array; columns in the classes' ascending order."""
    if not rows:
        return np.empty((0, width), dtype=number)
    keys = sorted(rows[0])
    return np.array([[row[key] for key in keys] for row in rows], dtype=number)


def _load_failure(error: Exception) -> ModelFailure:
    text = str(error)
    for code, pattern in _CAUSES:
        found = re.search(pattern, text)
        if found is not None:
            params = {key: str(value)[:100] for key, value in found.groupdict().items()}
            return ModelFailure(code, evidence=scrubbed(text[found.start() :]), **params)
    # What stands before this word is the file's path.
    return ModelFailure("onnx_invalid", evidence=scrubbed(text.split("failed:", 1)[-1]))
