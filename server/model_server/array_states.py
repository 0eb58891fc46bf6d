"""Checks what a pickle gives to numpy's own objects, which take it without looking.

An array of objects that is given too short a list reads behind it, and so does a type whose flags
were forged, or a generator whose position lies outside of its state. Other compiled code trusts its
state too (a tree's nodes, for one): the sandbox is there for that.
"""

from __future__ import annotations

import pickle
from typing import Any, Tuple

import numpy as np

_LIST_PICKLE = 0x02
_ALIGNED = 0x80
_MT19937_POSITIONS = 624
_BUFFER_POSITIONS = 4


def check_state(target: Any, state: Any) -> None:
    """Check the state of an array, a type or a generator; of anything else nothing is known.

    Raises:
        pickle.UnpicklingError: no pickler writes such a state.
    """
    if isinstance(target, np.dtype):
        _check_type(target, state)
    elif isinstance(target, np.ma.MaskedArray):
        _check_masked(state)
    elif isinstance(target, np.ndarray):
        _check_array(state)
    elif type(target).__module__.startswith("numpy.random"):
        _check_positions(state)


def _check_array(state: Any) -> None:
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise _forged("an array")
    shape, kind, _, data = state[-4:]
    _check_data(_count(shape), kind, data)


def _check_masked(state: Any) -> None:
    if not isinstance(state, tuple) or len(state) != 7:
        raise _forged("a masked array")
    _, shape, kind, _, data, mask, _ = state
    _check_data(_count(shape), kind, data)
    _check_data(_count(shape), np.ma.make_mask_descr(kind), mask)


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(type(axis) is int and axis >= 0 for axis in shape):
        raise _forged("a shape")
    count = 1
    for axis in shape:
        count *= axis
    return count


def _check_data(count: int, kind: Any, data: Any) -> None:
    if not isinstance(kind, np.dtype):
        raise _forged("an array's type")
    if kind.hasobject or kind.flags & _LIST_PICKLE:
        if type(data) is not list or len(data) != count:
            raise _forged("an array of objects")
    elif not isinstance(data, (bytes, bytearray, str, memoryview)) or (
        len(data) != count * kind.itemsize
    ):
        raise _forged("an array's bytes")


def _check_type(target: Any, state: Any) -> None:
    if not isinstance(state, tuple) or len(state) not in (8, 9):
        raise _forged("a type")
    _, order, subarray, names, fields, size, alignment, flags = state[:8]
    sound = (
        order in ("<", ">", "=", "|")
        and size in (-1, target.itemsize)
        and type(alignment) is int
        and -1 <= alignment <= 64
        and type(flags) is int
        and _wanted(target, subarray, names, fields).flags == flags & ~_ALIGNED
    )
    if not sound:
        raise _forged("a type")


def _wanted(target: Any, subarray: Any, names: Any, fields: Any) -> Any:
    """Make the type that a state describes as everybody else has to make it."""
    try:
        if subarray is not None:
            base, shape = subarray
            made = np.dtype((base, shape))
        elif names is not None or fields is not None:
            made = np.dtype(
                {
                    "names": list(names),
                    "formats": [_field(fields[name])[0] for name in names],
                    "offsets": [_field(fields[name])[1] for name in names],
                    "itemsize": target.itemsize,
                }
            )
        else:
            # A copy, since this one may have been given a state before.
            made = np.dtype(target.str)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _forged("a type") from error
    if made.itemsize != target.itemsize or ((subarray or names) and target.char != "V"):
        raise _forged("a type")
    return made


def _field(field: Any) -> Tuple[Any, int]:
    kind, offset = field[:2]
    if not isinstance(kind, np.dtype) or type(offset) is not int:
        raise _forged("a type's field")
    return kind, offset


def _check_positions(state: Any) -> None:
    if isinstance(state, dict):
        for key, value in state.items():
            most = {"pos": _MT19937_POSITIONS, "buffer_pos": _BUFFER_POSITIONS}.get(key)
            if most is not None and not (
                isinstance(value, (int, np.integer)) and 0 <= value <= most
            ):
                raise _forged("a generator's position")
            _check_positions(value)
    elif isinstance(state, tuple):
        for item in state:
            _check_positions(item)


def _forged(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"the state of {what} is none that is ever written")
