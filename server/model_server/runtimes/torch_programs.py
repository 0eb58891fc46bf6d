"""Opens programs of ``torch.export`` and reads what goes in and comes out."""

from __future__ import annotations

import logging
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

from server.model_server.evidence import one_line
from server.model_server.failures import ModelFailure
from server.model_server.runtimes.arrays import DATATYPES
from server.model_server.runtimes.base import TensorSpec
from server.model_server.runtimes.torch_values import as_array, named
from server.scrubbing import scrubbed

TENSOR = "tensor"
NUMBER: Mapping[str, Callable[[Any], Any]] = {"INT64": int, "FP64": float, "BOOL": bool}
"""What makes a number of an input without dimensions, by its datatype."""

_NUMBERS = {"SymIntArgument": "INT64", "SymFloatArgument": "FP64", "SymBoolArgument": "BOOL"}
_CAUSES: Tuple[Tuple[str, str], ...] = (
    (
        "exported_program_version",
        r"[^\n]*does not match our current (?:schema |archive )?version[^\n]*",
    ),
    (
        "exported_program_operator_missing",
        r"Unsupported target type for node Node\(target='(?P<name>[\w.:]+)'",
    ),
    ("exported_program_operator_missing", r"Couldn't find (?:the )?operator (?P<name>[\w.:]+)"),
    ("exported_program_needs_gpu", r"not compiled with CUDA|No CUDA GPUs|Found no NVIDIA driver"),
    ("exported_program_custom_object", r"Unsupported [a-z]+: GLOBAL (?P<name>[\w.]+)"),
)
"""Codes and what torch says in that case."""


@dataclass(frozen=True)
class Argument:
    """One leaf of what a program is called with: an input, or a value fixed by the export."""

    kind: str
    """``TENSOR``, a key of ``NUMBER``, or empty for a fixed value."""
    spec: Optional[TensorSpec] = None
    constant: Any = None


def load(torch: Any, path: str) -> Any:
    """Load a program; what is pickled in it only as far as torch's own list of names goes.

    Raises:
        ModelFailure: ``exported_program_version``, ``exported_program_operator_missing``,
            ``exported_program_needs_gpu``, ``exported_program_custom_object`` or
            ``exported_program_invalid``.
    """
    heard = _Heard()
    # torch logs the cause and raises an error that only points there.
    log = logging.getLogger("torch.export")
    log.addHandler(heard)
    try:
        with warnings.catch_warnings(), _only_weights(torch):
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except MemoryError:
        raise
    except Exception as error:
        raise _failure(error, heard.error) from error
    finally:
        log.removeHandler(heard)


class _Heard(logging.Handler):
    """Keeps the first error that was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Optional[BaseException] = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.error is None and record.exc_info:
            self.error = record.exc_info[1]


@contextmanager
def _only_weights(torch: Any) -> Iterator[None]:
    """Let torch.load take nothing but tensors and plain containers, whatever it is asked for.

    Its loader of programs asks for everything where that has failed.
    """
    plain = torch.load

    def load_weights(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **{**kwargs, "weights_only": True})

    torch.load = load_weights
    try:
        yield
    finally:
        torch.load = plain


def _failure(error: Exception, heard: Optional[BaseException]) -> Exception:
    for said in (error, heard):
        text = str(said)
        if "out of memory" in text or "can't allocate memory" in text:
            return MemoryError(text)
        for code, pattern in _CAUSES:
            found = re.search(pattern, text)
            if found is not None:
                params = {key: value[:100] for key, value in found.groupdict().items()}
                return ModelFailure(code, evidence=scrubbed(found[0]), **params)
    return ModelFailure("exported_program_invalid", evidence=one_line(heard or error))


def arguments_of(program: Any) -> List[Argument]:
    """Read the leaves of a program's call, in its order.

    Raises:
        ModelFailure: ``exported_program_type_unsupported``.
    """
    metas = {node.name: node.meta.get("val") for node in program.graph.nodes}
    arguments = []
    for each in program.graph_signature.input_specs:
        if each.kind.name != "USER_INPUT":
            continue
        kind = type(each.arg).__name__
        if kind == "TensorArgument":
            arguments.append(Argument(TENSOR, _tensor(each.arg.name, metas[each.arg.name])))
        elif kind in _NUMBERS:
            datatype = _NUMBERS[kind]
            arguments.append(Argument(datatype, TensorSpec(each.arg.name, datatype, ())))
        elif kind == "ConstantArgument":
            arguments.append(Argument("", constant=each.arg.value))
        else:
            raise ModelFailure(
                "exported_program_type_unsupported", name=str(each.arg.name)[:100], type=kind
            )
    return arguments


def outputs_of(program: Any, unflatten: Callable[[List[Any], Any], Any]) -> Tuple[TensorSpec, ...]:
    """Read what a program answers, named by its places and keys.

    Raises:
        ModelFailure: ``exported_program_type_unsupported``.
    """
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    specs = program.graph_signature.output_specs
    values = [
        item.meta["val"] if hasattr(item, "meta") else item
        for item, spec in zip(output.args[0], specs)
        if spec.kind.name == "USER_OUTPUT"
    ]
    answer = unflatten(values, program.call_spec.out_spec)
    return tuple(_output(name, value) for name, value in named(answer))


def _output(name: str, value: Any) -> TensorSpec:
    if hasattr(value, "dtype"):
        return _tensor(name, value)
    kinds = {"SymInt": "INT64", "SymFloat": "FP64", "SymBool": "BOOL"}
    kinds.update({"int": "INT64", "float": "FP64", "bool": "BOOL", "str": "BYTES"})
    kind = type(value).__name__
    if kind not in kinds:
        raise ModelFailure("exported_program_type_unsupported", name=name[:100], type=kind)
    return TensorSpec(name, kinds[kind], ())


def _tensor(name: str, value: Any) -> TensorSpec:
    dtype = str(value.dtype)
    datatype = DATATYPES.get(dtype.rpartition(".")[2])
    if datatype is None:
        raise ModelFailure("exported_program_type_unsupported", name=name[:100], type=dtype)
    # A size that is a symbol is left to the request; the program itself checks its bounds.
    shape = tuple(size if type(size) is int else -1 for size in value.shape)
    return TensorSpec(name, datatype, shape)


def examples_of(program: Any, arguments: List[Argument]) -> Dict[str, Any]:
    """Return the inputs that a program was exported with, as arrays; nothing if it has none."""
    from torch.utils import _pytree

    given = program.example_inputs
    leaves = _pytree.tree_leaves(given) if given else []
    if len(leaves) != len(arguments):
        return {}
    made = {}
    for argument, leaf in zip(arguments, leaves):
        if argument.spec is None:
            continue
        array = as_array(leaf)
        if array.dtype.kind in "OSU":
            return {}
        made[argument.spec.name] = array
    return made
