from __future__ import annotations

from array import array
from random import Random

import pytest

from metrics.exposition import BUCKETS_FROM, LAYOUT
from metrics.growth import NOTHING, Sum, between, pack

WIDTH = len(LAYOUT)


def vector(random: Random, scale: float = 1.0) -> array[float]:
    total, values = 0.0, []
    for slot in range(WIDTH):
        if slot == BUCKETS_FROM:
            total = 0.0
        total += random.choice((0, 0, 0, 1, 5)) * scale
        values.append(total)
    return array("d", values)


def added(*vectors: array[float]) -> array[float]:
    return array("d", map(sum, zip(*vectors, strict=True)))


@pytest.mark.parametrize("scale", [1.0, 0.5, 1e12])
def test_growth_is_packed_without_loss(scale: float) -> None:
    random = Random(11)
    one = vector(random, scale)
    two = added(one, vector(random, scale))
    three = added(two, vector(random, scale))
    grown = Sum()
    for earlier, later in ((NOTHING, one), (one, two), (two, three)):
        grown.add(pack(earlier, later))

    assert grown.vector() == three


def test_what_did_not_grow_costs_nothing() -> None:
    one = vector(Random(3))

    assert pack(one, one) == pack(one, array("d", one)) == b""
    grown = Sum()
    grown.add(b"")
    assert grown.vector() == NOTHING


def test_a_few_requests_take_a_few_bytes() -> None:
    later = array("d", NOTHING)
    later[0] += 7
    for slot in range(BUCKETS_FROM + 100, WIDTH):
        later[slot] += 7

    assert len(pack(NOTHING, later)) == 1 + 2 * (4 + 2)


@pytest.mark.parametrize(
    "damaged", [b"x", b"I1", b"Iabcde", b"d" + bytes(9), b"I" + bytes(4) + b"\xff\xff"]
)
def test_what_is_no_growth_is_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="no growth"):
        Sum().add(damaged)


def test_between_two_vectors_growth_is_even() -> None:
    one = vector(Random(5))
    two = added(one, one)

    assert list(between(one, two, 0.25)) == [1.25 * value for value in one]
