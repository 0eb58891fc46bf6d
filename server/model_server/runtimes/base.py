"""What every runtime promises: load one model file, say its signature, answer arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Sequence, Tuple


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    ``datatype`` is an Open Inference Protocol name (FP32, INT64, BYTES, ...); ``shape`` has -1
    for every dimension that a request may choose, and is None where even the rank is unknown.
    """

    name: str
    datatype: str
    shape: Optional[Tuple[int, ...]]


def tensor_specs(declared: Sequence[Mapping[str, Any]]) -> Tuple[TensorSpec, ...]:
    """Return the inputs or outputs that a description of code declares, as read from its JSON."""
    return tuple(
        TensorSpec(each["name"], each["datatype"], tuple(each["shape"])) for each in declared
    )


@dataclass(frozen=True)
class Signature:
    """Names, types and shapes of what goes in and comes out, in the model's order."""

    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Loaded:
    """What is known once a model is in memory."""

    signature: Signature
    framework: str
    framework_version: str
    device: str
    """Device that is really used: ``cpu`` or ``cuda``."""
    packages: Tuple[str, ...] = ()
    """Versions of the libraries that take part, by distribution name."""
    warnings: Tuple[Dict[str, Any], ...] = ()
    """Each ``{"code": ..., "params": {...}}``."""


class Runtime(ABC):
    """Runs one model. Blocking on purpose; called from one thread at a time if not concurrent.

    A tensor is a numpy array; text (BYTES) is an object array of ``bytes``.
    """

    kind: ClassVar[str]
    is_concurrent: ClassVar[bool] = False
    """Whether ``predict`` may run in several threads at once, each with one of its own."""
    shapes_are_guesses: ClassVar[bool] = False
    """Whether the shapes of inputs were guessed, so that a sample may differ from them."""
    names_failures: ClassVar[bool] = False
    """Whether a ``ModelFailure`` of ``predict`` says more than that the smoke test failed."""
    is_bounded: bool = False
    """Whether the time of a prediction follows from the sizes of its inputs alone."""
    may_mix_rows: bool = False
    """Whether the model is made so that a row's answer may depend on the other rows of a call."""

    @abstractmethod
    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        """Load the model's file.

        Raises:
            ModelFailure: with a code that names the cause.
        """

    def pack(self, path: str, folder: str) -> None:
        """Save the model's file into an empty folder, in a form whose weights processes share.

        Raises:
            NotImplementedError: there is no such form of this kind of model.
        """
        raise NotImplementedError(type(self).kind)

    def load_packed(self, path: str, folder: str, *, threads: int) -> Loaded:
        """Load the form of the model's file that ``pack`` has saved; raises as ``pack``."""
        raise NotImplementedError(type(self).kind)

    @abstractmethod
    def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Answer one request: arrays by input name in, arrays by output name out.

        ``outputs`` narrows the answer; None means all. Names, types and ranks were checked
        against the signature by the protocol; whatever the model raises is its own failure.
        """

    def candidates(self) -> List[Dict[str, Any]]:
        """Smoke-test inputs of the runtime's own, tried before the generated ones."""
        return []

    def describe(self, outputs: Mapping[str, Any]) -> Optional[Signature]:
        """Return a sharper signature, once a first answer showed what was unknown before it."""
        return None

    def adopt(self, signature: Signature) -> None:
        """Take over the signature that an earlier process proved for this very file."""
        del signature
