"""Proves that rows of several requests may be put together: the answers stay the same.

Rows that influence each other (a normalisation over the batch, a sort, a sum over everything)
show as soon as unlike rows are asked together and alone, in two orders and in unequal parts.
What shows only in some rows that nobody tried is for the runtime to tell, by how the model is made.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np

from server.model_server.batches import joined, parted, rows_of
from server.model_server.runtimes.base import Runtime, Signature

logger = logging.getLogger(__name__)

_PARTS = (1, 2, 1, 3, 1)
"""Rows of the requests that are tried together."""
_GAIN_ROWS = 8
_GAIN_SECONDS = 0.2
_GAIN_REPEATS = 20
_MAX_ELEMENTS = 1 << 20
_TOLERANCE = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-9}
"""Relative: kernels for one row and for many add up in different orders."""

Inputs = Dict[str, Any]


def prove_batching(
    runtime: Runtime, signature: Signature, inputs: Mapping[str, Any]
) -> Dict[str, Any]:
    """Compare answers together and alone; ``inputs`` are some that the model answers.

    Returns ``{"equal": bool}``, and if so ``gain``: how many times more rows a second the model
    answers by eights than one by one.
    """
    if runtime.may_mix_rows or not _may_batch(signature, inputs):
        return {"equal": False}
    try:
        requests = _requests(inputs)
        if requests is None or not _are_equal(runtime, requests):
            return {"equal": False}
        return {"equal": True, "gain": _gain(runtime, inputs)}
    except Exception:
        logger.info("the model does not take rows of several requests", exc_info=True)
        return {"equal": False}


def _may_batch(signature: Signature, inputs: Mapping[str, Any]) -> bool:
    tensors = (*signature.inputs, *signature.outputs)
    if not tensors or any(not spec.shape or spec.shape[0] != -1 for spec in tensors):
        return False
    size = sum(array.size // max(len(array), 1) for array in inputs.values() if array.ndim)
    return rows_of(inputs) > 0 and size * sum(_PARTS) <= _MAX_ELEMENTS


def _requests(inputs: Mapping[str, Any]) -> Optional[List[Inputs]]:
    """Make requests of unlike rows; None if there is no telling rows apart."""
    generator = np.random.default_rng(7)
    requests = [
        {name: _rows(array, rows, place // 2, generator) for name, array in inputs.items()}
        for place, rows in enumerate(_PARTS)
    ]
    whole = joined(requests)
    unlike = any(
        array.dtype.kind != "O" and len(np.unique(array.reshape(len(array), -1), axis=0)) > 1
        for array in whole.values()
    )
    return requests if unlike else None


def _rows(array: Any, rows: int, turn: int, generator: Any) -> Any:
    """Vary the first row of an input; integers keep to the values that the model has seen."""
    one = array[:1]
    repeated = np.repeat(one, rows, axis=0)
    if array.dtype.kind == "f":
        noise = generator.standard_normal(repeated.shape)
        return (repeated + (np.abs(repeated) * 0.1 + 0.1) * noise).astype(array.dtype)
    if array.dtype.kind == "O":
        return repeated
    values = np.unique(array)
    if len(values) < 2:
        # Zeros and ones are indices and flags of nearly every model.
        values = np.unique(np.array([0, 1, *values.tolist()]).astype(array.dtype))
    varied = generator.choice(values, size=repeated.shape).astype(array.dtype)
    # Mixed rows all have the same extremes, and a scale taken from those over all rows would not show.
    varied[0] = values[turn % len(values)]
    return varied


def _are_equal(runtime: Runtime, requests: Sequence[Inputs]) -> bool:
    alone = [runtime.predict(request) for request in requests]
    again = [runtime.predict(request) for request in requests]
    if not all(_same(first, second) for first, second in zip(alone, again)):
        return False
    orders = (list(range(len(requests))), list(range(len(requests)))[::-1], [0, 2])
    for order in orders:
        chosen = [requests[place] for place in order]
        parts = parted(runtime.predict(joined(chosen)), [rows_of(request) for request in chosen])
        if parts is None:
            return False
        if not all(_same(alone[place], part) for place, part in zip(order, parts)):
            return False
    return True


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        _same_array(np.asarray(array), np.asarray(other[name])) for name, array in one.items()
    )


def _same_array(one: Any, other: Any) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    tolerance = _TOLERANCE.get(one.dtype.name)
    if tolerance is None:
        return bool((one == other).all())
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=False))


def _gain(runtime: Runtime, inputs: Mapping[str, Any]) -> float:
    one = {name: array[:1] for name, array in inputs.items()}
    many = {name: np.repeat(array[:1], _GAIN_ROWS, axis=0) for name, array in inputs.items()}
    return round(_GAIN_ROWS * _quickest(runtime, one) / _quickest(runtime, many), 2)


def _quickest(runtime: Runtime, inputs: Mapping[str, Any]) -> float:
    """Time one call in seconds: the quickest of several, which noise disturbs least."""
    best = float("inf")
    began = time.perf_counter()
    for _ in range(_GAIN_REPEATS):
        before = time.perf_counter()
        runtime.predict(inputs)
        after = time.perf_counter()
        best = min(best, after - before)
        if after - began > _GAIN_SECONDS:
            break
    return max(best, 1e-7)
