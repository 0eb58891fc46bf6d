"""The classification extension: the highest values of an output and the places where they are."""

from __future__ import annotations

import math
from typing import Any, Optional, Sequence

import numpy as np

from server.model_server import tensors
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes.arrays import are_finite, is_bfloat16, is_float
from server.model_server.runtimes.base import TensorSpec


def check(spec: TensorSpec) -> None:
    """Refuse what can be seen to be no scores of classes before it is predicted.

    Raises:
        BadInputError: ``classification_unsupported``.
    """
    shape = spec.shape
    is_flat = shape is not None and len(shape) < 2 and not _is_one_list(shape)
    if not tensors.is_numeric(spec.datatype) or is_flat:
        raise _unsupported(spec.name, spec.datatype, shape)


def classify(spec: TensorSpec, value: Any, count: int) -> Any:
    """Return the ``count`` highest values of each row as text ``value:index``.

    A row is what the first dimension counts, and all that it holds is one list of classes; an
    output that always has one dimension of one size is a single such list. There are as many
    answers as classes if that is less than ``count``. Of equal values the first comes first.

    Raises:
        BadInputError: ``classification_unsupported``.
        ModelFailure: ``output_not_finite``, since NaN has no place in an order.
    """
    array = np.asarray(value)
    is_one = array.ndim == 1 and spec.shape is not None and _is_one_list(spec.shape)
    is_number = array.dtype.kind in "iuf" or is_bfloat16(array.dtype)
    if not is_number or (array.ndim < 2 and not is_one):
        raise _unsupported(spec.name, array.dtype.name, array.shape)
    if is_float(array.dtype) and not are_finite(array).all():
        raise ModelFailure("output_not_finite", tensor=spec.name)
    shape = (1, *array.shape) if is_one else array.shape
    classes = math.prod(shape[1:])
    answer = _highest(array.reshape(shape[0], classes), min(count, classes))
    return answer[0] if is_one else answer


def _highest(rows: Any, count: int) -> Any:
    # Ascending and stable from the far end: read backwards, equal values keep their order.
    order = rows[:, ::-1].astype(np.float32) if is_bfloat16(rows.dtype) else rows[:, ::-1]
    places = rows.shape[1] - 1 - np.argsort(order, axis=1, kind="stable")[:, ::-1][:, :count]
    answer: Any = np.empty((len(rows), count), dtype=object)
    for row, chosen in enumerate(places.tolist()):
        for rank, place in enumerate(chosen):
            answer[row, rank] = f"{rows[row, place]!s}:{place}".encode("ascii")
    return answer


def _is_one_list(shape: Sequence[int]) -> bool:
    return len(shape) == 1 and shape[0] > 0


def _unsupported(name: str, found: str, shape: Optional[Sequence[int]]) -> BadInputError:
    return BadInputError(
        "classification_unsupported", tensor=name, found=f"{found} {tensors.shape_text(shape)}"
    )
