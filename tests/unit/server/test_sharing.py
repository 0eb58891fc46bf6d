import os
from collections.abc import Callable, Iterator

import pytest

from server.model_server.sharing import FRESH_SECONDS, SLOT_BYTES, Share

Make = Callable[[int], Share]
SLOTS = 8


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Iterator[Make]:
    descriptor = os.memfd_create("shares")
    os.ftruncate(descriptor, SLOTS * SLOT_BYTES)
    yield lambda slot: Share(descriptor, slot, clock)
    os.close(descriptor)


def test_who_is_alone_leaves_nothing_to_others(make: Make) -> None:
    share = make(0)
    share.publish(9, True)

    assert (share.excess(), share.surplus()) == (0, 0)


def test_the_excess_is_counted_against_the_idlest(make: Make) -> None:
    shares = [make(slot) for slot in (0, 1, SLOTS - 1)]
    for share, held in zip(shares, (7, 3, 5), strict=True):
        share.publish(held, True)

    assert [share.excess() for share in shares] == [4, 0, 2]


def test_who_does_not_accept_does_not_count(make: Make) -> None:
    ours, draining = make(0), make(1)
    ours.publish(7, True)
    draining.publish(0, False)

    assert (ours.excess(), ours.surplus()) == (0, 0)


def test_who_shows_no_sign_of_life_does_not_count(make: Make, clock: Clock) -> None:
    ours, killed = make(0), make(1)
    killed.publish(0, True)
    clock.now += FRESH_SECONDS + 0.1
    ours.publish(7, True)

    assert (ours.excess(), ours.surplus()) == (0, 0)


def test_the_surplus_is_what_one_has_to_part_with_for_all_to_hold_equally_many(make: Make) -> None:
    shares = [make(slot) for slot in range(4)]
    for share, held in zip(shares, (8, 8, 0, 0), strict=True):
        share.publish(held, True)

    assert [share.surplus() for share in shares] == [4, 4, 0, 0]


def test_one_more_than_the_others_is_no_surplus(make: Make) -> None:
    shares = [make(slot) for slot in range(3)]
    for share, held in zip(shares, (6, 5, 5), strict=True):
        share.publish(held, True)

    assert [share.surplus() for share in shares] == [0, 0, 0]


def test_there_are_no_places_beyond_the_last(make: Make) -> None:
    with pytest.raises(ValueError, match="out of range"):
        make(SLOTS)


def test_memory_without_room_is_not_mapped(clock: Clock) -> None:
    descriptor = os.memfd_create("empty")
    try:
        with pytest.raises(ValueError, match="out of range"):
            Share(descriptor, 0, clock)
    finally:
        os.close(descriptor)
