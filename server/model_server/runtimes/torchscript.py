"""Runs TorchScript modules with torch."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from server.model_server.failures import ModelFailure
from server.model_server.runtimes import torch_files, torch_shapes
from server.model_server.runtimes.arrays import datatype_of, is_float, numpy_dtype
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec
from server.model_server.runtimes.torch_values import Streams, as_array, as_tensor, named

logger = logging.getLogger(__name__)

_NUMBERS = {"int": "INT64", "float": "FP64", "bool": "BOOL"}


class TorchScriptRuntime(Runtime):
    """One scripted or traced module."""

    kind: ClassVar[str] = "torchscript"
    is_concurrent: ClassVar[bool] = True
    shapes_are_guesses: ClassVar[bool] = True

    def __init__(self) -> None:
        self._module: Any = None
        self._torch: Any = None
        self._device = "cpu"
        self._arguments: List[Tuple[str, str]] = []
        self._guesses: Dict[str, Optional[torch_shapes.Guess]] = {}
        self._inputs: Tuple[TensorSpec, ...] = ()
        self._is_bfloat = False
        self._last: Dict[str, Any] = {}
        self._streams = Streams()
        self._proven = False

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        """Load the module onto its device and read its inputs off ``forward``."""
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._device = "cuda" if device == "cuda" and torch.cuda.is_available() else "cpu"
        self._module = torch_files.load(torch, path, self._device)
        self._arguments = list(_arguments(self._module))
        tensors = [name for name, kind in self._arguments if kind == "Tensor"]
        self._guesses = torch_shapes.guess_inputs(self._module, tensors)
        self._inputs = tuple(self._input(name, kind) for name, kind in self._arguments)
        self._is_bfloat = self._computes_bfloat()
        return Loaded(
            signature=Signature(self._inputs, ()),
            framework="torch",
            framework_version=str(torch.__version__),
            device=self._device,
            packages=("torch", "numpy"),
        )

    def _input(self, name: str, kind: str) -> TensorSpec:
        if kind != "Tensor":
            return TensorSpec(name, _NUMBERS[kind], ())
        guess = self._guesses[name]
        if guess is None:
            return TensorSpec(name, self._default_datatype(), None)
        return TensorSpec(name, guess.datatype, guess.declared)

    def _default_datatype(self) -> str:
        for weight in self._module.parameters():
            return torch_shapes.datatype(weight)
        return "FP32"

    def _computes_bfloat(self) -> bool:
        first = next(iter(self._module.parameters()), None)
        return first is not None and first.dtype == self._torch.bfloat16

    def adopt(self, signature: Signature) -> None:
        """Keep the types that a sample had shown."""
        self._inputs = signature.inputs
        self._proven = True

    def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Run ``forward`` once, without gradients."""
        with self._torch.no_grad(), self._streams.of(self._torch, self._device):
            arguments = [self._argument(kind, inputs[name]) for name, kind in self._arguments]
            answer = self._module(*arguments)
            answers = {name: as_array(item) for name, item in named(answer)}
        if not self._proven:
            self._last = dict(inputs)
        if outputs is None:
            return answers
        return {name: answers[name] for name in outputs if name in answers}

    def _argument(self, kind: str, array: Any) -> Any:
        if kind != "Tensor":
            return {"int": int, "float": float, "bool": bool}[kind](array)
        # A sample has no bfloat16, since numpy's files have none.
        cast = self._torch.bfloat16 if self._is_bfloat and array.dtype == np.float32 else None
        return as_tensor(self._torch, array, self._device, cast)

    def candidates(self) -> List[Dict[str, Any]]:
        """Zeros, then small values, in the sizes that an image or a signal may need."""
        guesses = {name: guess for name, guess in self._guesses.items() if guess is not None}
        if len(guesses) < len(self._guesses) or not guesses:
            return []
        plans = [(guesses, size) for size in torch_shapes.sizes_for(list(guesses.values()))]
        longer = {n: torch_shapes.with_one_more_dimension(g) for n, g in guesses.items()}
        if longer != guesses:
            plans.append((longer, 1))
        return [
            self._filled(plan, size, batch, zeros=zeros)
            for zeros in (True, False)
            for plan, size in plans
            for batch in (1, 2)
        ]

    def _filled(
        self, plan: Mapping[str, torch_shapes.Guess], size: int, batch: int, *, zeros: bool
    ) -> Dict[str, Any]:
        made: Dict[str, Any] = {}
        for spec in self._inputs:
            guess = plan.get(spec.name)
            dtype = numpy_dtype(spec.datatype)
            # A bare number is a count or a factor more often than not.
            value = 0.0 if zeros and guess is not None else 0.1 if is_float(dtype) else 1
            shape = () if guess is None else guess.concrete(batch, size)
            made[spec.name] = np.full(shape, value, dtype=dtype)
        return made

    def describe(self, outputs: Mapping[str, Any]) -> Optional[Signature]:
        """Find out which dimensions are free by asking for more along each of them."""
        if not self._last or self._proven:
            return None
        known = dict(self._last)
        learned = _Learned(known, outputs)
        for axis in range(max((array.ndim for array in known.values()), default=0)):
            names = [name for name in known if self._may_grow(name, known[name], axis)]
            grown = names and self._try_growth(axis, names, known, learned)
            if not grown and len(names) > 1:
                for name in names:
                    self._try_growth(axis, [name], known, learned)
        if any(kind != "Tensor" for _, kind in self._arguments):
            learned.free_all_outputs()
        self._inputs = tuple(
            TensorSpec(spec.name, _datatype(known[spec.name]), learned.inputs[spec.name])
            for spec in self._inputs
        )
        answers = tuple(
            TensorSpec(name, _datatype(array), learned.outputs[name])
            for name, array in outputs.items()
        )
        self._proven, self._last = True, {}
        return Signature(self._inputs, answers)

    def _may_grow(self, name: str, array: Any, axis: int) -> bool:
        """Tell sizes that weights prescribe: some kernels do not check them, and read beyond."""
        if array.ndim <= axis:
            return False
        guess = self._guesses.get(name)
        if guess is None or len(guess.shape) != array.ndim:
            last = guess.shape[-1] if guess is not None else -1
            return axis < array.ndim - 1 or last < 0
        return guess.declared[axis] == -1

    def _try_growth(
        self, axis: int, names: Sequence[str], known: Mapping[str, Any], learned: _Learned
    ) -> bool:
        """Double one axis of some inputs; it is free if the model takes that."""
        grown = dict(known)
        for name in names:
            grown[name] = np.concatenate([known[name], known[name]], axis=axis)
        try:
            answers = self.predict(grown)
        except Exception:  # noqa: BLE001 - any refusal means that the size is fixed
            return False
        return learned.compare(axis, names, answers)


class _Learned:
    """Shapes of a first inference, with those dimensions freed that have been seen to vary."""

    def __init__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self._first = dict(outputs)
        self.inputs: Dict[str, Tuple[int, ...]] = {n: a.shape for n, a in inputs.items()}
        # What is empty now need not stay so: the model chooses how much it answers.
        self.outputs: Dict[str, Tuple[int, ...]] = {
            name: tuple(size or -1 for size in array.shape) for name, array in outputs.items()
        }

    def compare(self, axis: int, names: Sequence[str], outputs: Mapping[str, Any]) -> bool:
        """Learn from an inference whose inputs had another size along one axis."""
        ranks = {name: array.ndim for name, array in outputs.items()}
        if ranks != {name: array.ndim for name, array in self._first.items()}:
            return False
        for name in names:
            self.inputs[name] = _freed(self.inputs[name], axis)
        for name, array in outputs.items():
            for place, size in enumerate(array.shape):
                if size != self._first[name].shape[place]:
                    self.outputs[name] = _freed(self.outputs[name], place)
        return True

    def free_all_outputs(self) -> None:
        """Promise no size, since a number among the inputs may choose it."""
        self.outputs = {name: (-1,) * len(shape) for name, shape in self.outputs.items()}


def _freed(shape: Tuple[int, ...], place: int) -> Tuple[int, ...]:
    return (*shape[:place], -1, *shape[place + 1 :])


def _datatype(array: Any) -> str:
    return datatype_of(array) or "FP32"


def _arguments(module: Any) -> Iterator[Tuple[str, str]]:
    """Names and kinds of what ``forward`` has to be given, in its order."""
    try:
        schema = module.forward.schema
    except (AttributeError, RuntimeError):
        raise ModelFailure("torchscript_no_forward") from None
    for argument in list(schema.arguments)[1:]:
        kind = str(argument.type)
        if kind == "Tensor" or (kind in _NUMBERS and not argument.has_default_value()):
            yield str(argument.name), kind
        elif argument.has_default_value():
            # Later positional arguments would slip into this one's place.
            return
        else:
            raise ModelFailure(
                "torchscript_argument_unsupported", name=str(argument.name)[:100], type=kind[:100]
            )
