"""Runs programs of ``torch.export`` with torch."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Sequence, Tuple

from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes import torch_programs
from server.model_server.runtimes.base import Loaded, Runtime, Signature
from server.model_server.runtimes.torch_programs import NUMBER, TENSOR, Argument
from server.model_server.runtimes.torch_values import Streams, as_array, as_tensor, named
from server.scrubbing import scrubbed

# What a program says, in newer and older releases, of sizes that it was not exported for.
_GUARD = re.compile(r"Guard failed: (?P<now>.+)|(?P<before>Expected input at .+)")


class TorchExportRuntime(Runtime):
    """One exported program; its inputs are the tensors and numbers it was exported with."""

    kind: ClassVar[str] = "torch_export"
    is_concurrent: ClassVar[bool] = True

    def __init__(self) -> None:
        self._torch: Any = None
        self._module: Any = None
        self._unflatten: Any = None
        self._structure: Any = None
        self._device = "cpu"
        self._streams = Streams()
        self._arguments: List[Argument] = []
        self._examples: Dict[str, Any] = {}
        self._states: List[Tuple[str, Any, int]] = []

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        """Load the program, move it to its device and read its signature."""
        import torch
        from torch.utils import _pytree

        torch.set_num_threads(threads)
        self._torch = torch
        self._device = "cuda" if device == "cuda" and torch.cuda.is_available() else "cpu"
        program = torch_programs.load(torch, path)
        if self._device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self._device)
        self._arguments = torch_programs.arguments_of(program)
        self._examples = torch_programs.examples_of(program, self._arguments)
        self._unflatten = _pytree.tree_unflatten
        self._structure = program.call_spec.in_spec
        outputs = torch_programs.outputs_of(program, self._unflatten)
        self._module = program.module()
        states = (*self._module.named_parameters(), *self._module.named_buffers())
        self._states = [(name, tensor, tensor._version) for name, tensor in states]
        inputs = tuple(each.spec for each in self._arguments if each.spec is not None)
        return Loaded(
            signature=Signature(inputs, outputs),
            framework="torch",
            framework_version=str(torch.__version__),
            device=self._device,
            packages=("torch", "numpy"),
        )

    def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Run the program once, without gradients.

        Raises:
            BadInputError: ``exported_program_guard`` for sizes it was not exported for.
        """
        with self._torch.no_grad(), self._streams.of(self._torch, self._device):
            leaves = [self._leaf(argument, inputs) for argument in self._arguments]
            positional, keywords = self._unflatten(leaves, self._structure)
            try:
                answer = self._module(*positional, **keywords)
            except (AssertionError, RuntimeError) as error:
                raise _refused(error) or error from None
            answers = {name: as_array(item) for name, item in named(answer)}
        if outputs is None:
            return answers
        return {name: answers[name] for name in outputs if name in answers}

    def _leaf(self, argument: Argument, inputs: Mapping[str, Any]) -> Any:
        if argument.spec is None:
            return argument.constant
        array = inputs[argument.spec.name]
        if argument.kind == TENSOR:
            return as_tensor(self._torch, array, self._device)
        return NUMBER[argument.kind](array)

    def candidates(self) -> List[Dict[str, Any]]:
        """Return the inputs that it was exported with."""
        return [self._examples] if self._examples else []

    def describe(self, outputs: Mapping[str, Any]) -> Optional[Signature]:
        """Refuse a program that the first answer has changed: replicas would answer differently.

        Raises:
            ModelFailure: ``exported_program_changes_itself``.
        """
        del outputs
        for name, tensor, version in self._states:
            if tensor._version != version:
                raise ModelFailure("exported_program_changes_itself", name=scrubbed(name)[:100])
        return None


def _refused(error: Exception) -> Optional[BadInputError]:
    found = _GUARD.search(str(error))
    if found is None:
        return None
    said = scrubbed(found["now"] or found["before"])
    return BadInputError("exported_program_guard", condition=said[:150])
