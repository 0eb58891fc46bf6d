"""Puts the inputs of several requests into one call, and takes its answer apart again."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

Key = Tuple[Any, ...]


def rows_of(inputs: Mapping[str, Any]) -> int:
    """Count the rows of a request; 0 if its inputs share no first dimension."""
    rows = -1
    for array in inputs.values():
        shape = array.shape
        if not shape or (rows >= 0 and shape[0] != rows):
            return 0
        rows = shape[0]
    return max(rows, 0)


def key_of(inputs: Mapping[str, Any], outputs: Optional[Sequence[str]]) -> Key:
    """Say which requests fit together: those whose rows have equal types and shapes."""
    parts: List[Any] = [None if outputs is None else tuple(outputs)]
    for array in inputs.values():
        parts.append(array.dtype)
        parts.append(array.shape[1:])
    return tuple(parts)


def joined(requests: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """Put requests of one key below each other."""
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def parted(answer: Mapping[str, Any], rows: Sequence[int]) -> Optional[List[Dict[str, Any]]]:
    """Take an answer apart by the requests' rows; None if it does not have as many."""
    total = sum(rows)
    for array in answer.values():
        if not array.shape or array.shape[0] != total:
            return None
    parts = []
    start = 0
    for count in rows:
        parts.append({name: array[start : start + count] for name, array in answer.items()})
        start += count
    return parts
