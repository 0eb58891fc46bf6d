"""Asks a loaded model real questions until one answer is finite and of the declared shape."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Tuple

import numpy as np

from server.model_server import tensors
from server.model_server.evidence import is_out_of_memory, one_line
from server.model_server.failures import BadInputError, ModelFailure, named_absence
from server.model_server.runtimes.arrays import are_finite, is_float, numpy_dtype
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec
from server.model_server.samples import fits, read_sample
from server.scrubbing import scrubbed

logger = logging.getLogger(__name__)

_BATCHES: Tuple[Tuple[int, int], ...] = ((1, 1), (2, 2), (1, 32), (1, 16), (1, 224), (1, 64))
"""Sizes of free dimensions: the first one, and the others."""

_MAX_ELEMENTS = 1 << 24
_SEARCH_SECONDS = 60.0

Inputs = Dict[str, Any]
Progress = Callable[[str, Dict[str, Any]], None]


@dataclass(frozen=True)
class Proof:
    """An answered inference: where its inputs came from, and the signature it confirmed."""

    source: str
    """``sample``, ``zeros``, ``ones`` or ``small``."""
    inputs: Inputs
    signature: Signature


@dataclass
class _Search:
    """What went wrong so far; the first of each kind explains best."""

    attempts: int = 0
    error: str = ""
    failure: Optional[ModelFailure] = None
    is_memory: bool = False
    """Whether that error is a lack of memory."""
    not_finite: str = ""
    wrong_shape: str = ""


def smoke_test(
    runtime: Runtime, loaded: Loaded, sample: Optional[str], progress: Progress
) -> Proof:
    """Find inputs that the model answers as it should.

    Raises:
        ModelFailure: ``smoke_test_not_finite``, ``signature_unknown``, ``smoke_test_failed``,
            ``module_missing``, ``model_memory_exceeded``, or what a sample is refused for.
    """
    search = _Search()
    started = time.monotonic()
    for source, inputs in _questions(runtime, loaded.signature, sample):
        search.attempts += 1
        progress("smoke_test_running", {"attempt": search.attempts})
        answers = _ask(runtime, loaded.signature, inputs, search)
        if answers is not None:
            signature = runtime.describe(answers) or loaded.signature
            return Proof(source, inputs, _confirmed(signature, inputs))
        if time.monotonic() - started > _SEARCH_SECONDS:
            break
    raise search.failure or _failure(search, loaded, sample)


def _questions(
    runtime: Runtime, signature: Signature, sample: Optional[str]
) -> Iterator[Tuple[str, Inputs]]:
    if sample is not None:
        yield "sample", read_sample(sample, signature, shapes_bind=not runtime.shapes_are_guesses)
        return
    for inputs in runtime.candidates():
        yield "zeros" if _all_zero(inputs) else "small", inputs
    if any(spec.shape is None for spec in signature.inputs):
        return
    for first, others in _BATCHES:
        shapes = [_concrete(spec.shape or (), first, others) for spec in signature.inputs]
        if first != others and not any(_free_inside(spec) for spec in signature.inputs):
            return
        if sum(int(np.prod(shape)) for shape in shapes) > _MAX_ELEMENTS:
            continue
        for source in ("zeros", "ones", "small"):
            named = zip(signature.inputs, shapes)
            yield source, {spec.name: _made(source, spec, shape) for spec, shape in named}


def _all_zero(inputs: Inputs) -> bool:
    return all(array.dtype.kind != "O" and not array.any() for array in inputs.values())


def _free_inside(spec: TensorSpec) -> bool:
    """Whether a dimension beyond the batch is free; such models may refuse very small sizes."""
    return -1 in (spec.shape or ())[1:]


def _concrete(shape: Tuple[int, ...], first: int, others: int) -> Tuple[int, ...]:
    return tuple(
        size if size != -1 else first if place == 0 else others for place, size in enumerate(shape)
    )


def _made(source: str, spec: TensorSpec, shape: Tuple[int, ...]) -> Any:
    if spec.datatype == "BYTES":
        text = {"zeros": b"0", "ones": b"1", "small": b"text"}[source]
        return np.full(shape, text, dtype=object)
    dtype = numpy_dtype(spec.datatype)
    if source != "small":
        return np.full(shape, 0 if source == "zeros" else 1, dtype=dtype)
    places = np.arange(int(np.prod(shape))).reshape(shape)
    small = (places % 7 + 1) / 10.0 if is_float(dtype) else places % 2
    return small.astype(dtype)


def _ask(
    runtime: Runtime, signature: Signature, inputs: Inputs, search: _Search
) -> Optional[Mapping[str, Any]]:
    try:
        answers = runtime.predict(inputs)
    except BadInputError as error:
        search.error = search.error or error.code
        return None
    except ModelFailure as failure:
        if runtime.names_failures:
            search.failure = search.failure or failure
        search.error = search.error or failure.evidence or failure.code
        return None
    except Exception as error:
        absence = named_absence(error)
        if absence is not None:
            raise absence from error
        logger.info("the model refused a smoke-test input", exc_info=True)
        search.is_memory |= not search.error and is_out_of_memory(error)
        search.error = search.error or one_line(error)
        return None
    return answers if _good(answers, signature, search) else None


def _good(answers: Mapping[str, Any], signature: Signature, search: _Search) -> bool:
    for name, array in answers.items():
        if is_float(array.dtype) and not are_finite(array).all():
            search.not_finite = search.not_finite or scrubbed(
                f"{name}: {'NaN' if np.isnan(array).any() else 'infinity'}"
            )
            return False
    for spec in signature.outputs:
        array = answers.get(spec.name)
        found = "nothing" if array is None else tensors.shape_text(array.shape)
        if array is None or not (spec.shape in (None, ()) or fits(array.shape, spec.shape or ())):
            search.wrong_shape = search.wrong_shape or scrubbed(
                f"{spec.name}: {tensors.shape_text(spec.shape)} declared, {found} answered"
            )
            return False
    return True


def _confirmed(signature: Signature, inputs: Inputs) -> Signature:
    """Let the inputs that worked correct a rank that the file left out."""
    corrected = []
    for spec in signature.inputs:
        rank = inputs[spec.name].ndim
        known = spec.shape is not None and len(spec.shape) == rank
        corrected.append(spec if known else dataclasses.replace(spec, shape=(-1,) * rank))
    return Signature(tuple(corrected), signature.outputs)


def _failure(search: _Search, loaded: Loaded, sample: Optional[str]) -> ModelFailure:
    if search.not_finite:
        return ModelFailure("smoke_test_not_finite", evidence=search.not_finite)
    if search.wrong_shape:
        return ModelFailure("smoke_test_shape", evidence=search.wrong_shape)
    for warning in loaded.warnings:
        if warning["code"] == "sklearn_version_differs" and not search.is_memory:
            made_with = warning["params"]["made_with"]
            return ModelFailure(
                "sklearn_version_mismatch", evidence=search.error, made_with=made_with
            )
    if search.is_memory or sample is not None:
        code = "model_memory_exceeded" if search.is_memory else "smoke_test_sample_failed"
        return ModelFailure(code, evidence=search.error)
    signature = loaded.signature
    unknown = [spec.name for spec in signature.inputs if -1 in (spec.shape or (-1,))[1:]]
    unknown += [spec.name for spec in signature.inputs if spec.shape is None]
    if unknown:
        names = scrubbed(", ".join(unknown))[:200]
        return ModelFailure("signature_unknown", inputs=names, evidence=search.error)
    return ModelFailure("smoke_test_failed", evidence=search.error)
