"""How much the series of a target grew, packed: what did not grow costs nothing.

Vectors are in the order of ``exposition.LAYOUT``, their buckets cumulated as they are exposed.
What is packed is the growth of each bucket by itself: few of them grow at a time.
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from operator import sub
from typing import TYPE_CHECKING

from metrics.exposition import BUCKETS_FROM, LAYOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTHING = array("d", bytes(8 * len(LAYOUT)))
"""The vector of a target that has counted nothing."""


def pack(earlier: Sequence[float], later: Sequence[float]) -> bytes:
    """Pack the difference of two vectors."""
    if later is earlier:
        return b""
    grown = list(map(sub, later, earlier))
    buckets = grown[BUCKETS_FROM:]
    single = [*grown[: BUCKETS_FROM + 1], *map(sub, buckets[1:], buckets[:-1])]
    slots = [slot for slot, value in enumerate(single) if value]
    if not slots:
        return b""
    values = [single[slot] for slot in slots]
    try:
        packed = b"I" + array("I", map(_whole, values)).tobytes()
    except (OverflowError, ValueError):
        packed = b"d" + array("d", values).tobytes()
    return packed + array("H", slots).tobytes()


class Sum:
    """A vector that grows by what was packed."""

    __slots__ = ("_single",)

    def __init__(self) -> None:
        self._single = [0.0] * len(LAYOUT)

    def add(self, growth: bytes) -> None:
        """Let it grow.

        Raises:
            ValueError: these bytes are no growth.
        """
        if not growth:
            return
        kind = chr(growth[0])
        if kind not in {"I", "d"}:
            raise ValueError("no growth")
        values: array[float] = array(kind)
        number, rest = divmod(len(growth) - 1, 2 + values.itemsize)
        if rest:
            raise ValueError("no growth")
        slots = array("H")
        values.frombytes(growth[1 : 1 + number * values.itemsize])
        slots.frombytes(growth[1 + number * values.itemsize :])
        if max(slots) >= len(LAYOUT):
            raise ValueError("no growth")
        single = self._single
        for slot, value in zip(slots, values, strict=True):
            single[slot] += value

    def vector(self) -> array[float]:
        """Return the vector as it is now."""
        single = self._single
        return array("d", [*single[:BUCKETS_FROM], *accumulate(single[BUCKETS_FROM:])])


def between(earlier: Sequence[float], later: Sequence[float], share: float) -> array[float]:
    """Return the vector where a share of the growth between two had happened."""
    return array(
        "d", [one + share * (other - one) for one, other in zip(earlier, later, strict=True)]
    )


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError("a fraction")
    return int(value)
