from __future__ import annotations

from array import array
from itertools import pairwise
from random import Random

import pytest

from metrics.exposition import BUCKETS_FROM, LAYOUT
from metrics.growth import NOTHING
from metrics.tiers import Block, Mark, Opened, Plan, Point, Tier, dump

PLAN = Plan(spacing=60_000, keep=3_600_000, length=8)


def total(requests: float) -> array[float]:
    """Requests that all fell into one bucket."""
    rest = [0.0] * (BUCKETS_FROM - 1 + 50)
    return array("d", [requests, *rest, *([requests] * (len(LAYOUT) - len(rest) - 1))])


def point(second: int, requests: float, *, good: int | None = None) -> Point:
    """A scrape each second, all of them good unless it is said how many were."""
    number = second if good is None else good
    return Point(Mark(second * 1000, second, number, 0.0), total(requests))


def filled(points: list[Point], plan: Plan = PLAN) -> Tier:
    tier = Tier(plan)
    for one in points:
        tier.add(one)
    return tier


def written(tier: Tier, starts: set[int]) -> dict[int, bytes]:
    return {start: dump(block) for start, block in tier.blocks(starts).items()}


def requests_at(tier: Tier, second: float, latest: Point) -> float:
    return tier.at(round(second * 1000), latest, Opened()).total[0]


def test_a_sample_is_taken_once_in_its_spacing() -> None:
    tier = Tier(PLAN)
    assert tier.is_due(0)
    tier.add(point(7, 1))

    assert [tier.is_due(second * 1000) for second in (7, 59, 60, 61)] == [False, False, True, True]


def test_between_two_samples_growth_is_even_and_over_many_blocks_too() -> None:
    points = [point(60 * minute, 100 * minute) for minute in range(50)]
    tier = filled(points)

    for second in (0, 30, 59, 60, 61, 479, 480, 481, 1234, 2940):
        assert requests_at(tier, second, points[-1]) == pytest.approx(second / 60 * 100)
    mark = tier.at(90_000, points[-1], Opened()).mark
    assert (mark.at, mark.scrapes, mark.samples) == (90_000, 90, 90)


def test_after_the_last_sample_growth_leads_to_the_newest_scrape() -> None:
    tier = filled([point(0, 0), point(60, 100)])
    newest = point(80, 200)

    assert requests_at(tier, 70, newest) == 150
    assert requests_at(tier, 80, newest) == 200
    assert requests_at(tier, 5000, newest) == 200


def test_while_nothing_changes_nothing_is_added() -> None:
    idle = filled([point(60 * minute, 7) for minute in range(1, 1000)])

    assert idle.size < 2000
    assert requests_at(idle, 30_000, point(60_000, 7)) == 7


def test_what_comes_after_a_quiet_time_is_not_spread_over_it() -> None:
    points = [point(60 * minute, 7) for minute in range(1, 100)]
    points.append(point(6000, 107))
    tier = filled(points)

    assert requests_at(tier, 5939, points[-1]) == 7
    assert requests_at(tier, 5970, points[-1]) == 57


def test_scrapes_that_fail_are_told_from_those_that_do_not() -> None:
    points = [point(60 * minute, 7) for minute in range(1, 101)]
    points += [point(60 * minute, 7, good=6000) for minute in range(101, 201)]
    tier = filled(points)
    opened = Opened()

    marks = [tier.at(second * 1000, points[-1], opened).mark for second in (3000, 6000, 9000)]
    assert [round(mark.scrapes) for mark in marks] == [3000, 6000, 9000]
    assert [round(mark.samples) for mark in marks] == [3000, 6000, 6000]
    assert tier.size < 2000


def test_what_is_old_is_given_up_block_by_block() -> None:
    points = [point(60 * minute, minute) for minute in range(200)]
    tier = filled(points)
    before = set(tier.fresh)
    tier.expire(200 * 60_000)

    first = tier.first_at
    assert first is not None
    # The block that the window begins in is still whole.
    assert 200 * 60_000 - PLAN.keep - 8 * 60_000 < first <= 200 * 60_000 - PLAN.keep
    assert tier.dropped == {start for start in before if start < first}
    assert set(tier.blocks(before)) == before - tier.dropped


def test_thinning_gives_up_the_older_half() -> None:
    tier = filled([point(60 * minute, minute) for minute in range(81)])
    size = tier.size
    tier.thin()

    assert tier.size < 0.7 * size
    assert tier.first_at == 40 * 60_000


def test_blocks_that_were_written_down_read_as_the_tier_they_came_from() -> None:
    random = Random(17)
    requests, points = 0.0, []
    for second in range(0, 7200, 20):
        requests += random.choice((0, 0, 3))
        points.append(point(second, requests))
    one, other = filled(points), Tier(PLAN)
    blocks = written(one, one.fresh)
    other.take(blocks, Opened())
    assert written(other, one.fresh) == blocks
    for later in (point(7201, requests), point(7300, requests + 5)):
        one.add(later)
        other.add(later)

    assert other.first_at == one.first_at
    for second in range(0, 7300, 77):
        expected = one.at(second * 1000, points[-1], Opened())
        found = other.at(second * 1000, points[-1], Opened())
        assert (found.mark.at, found.total) == (expected.mark.at, expected.total)


def test_only_blocks_that_changed_are_to_be_written_again() -> None:
    tier = Tier(PLAN)
    seen: list[set[int]] = []
    for minute in range(20):
        tier.add(point(60 * minute, minute))
        seen.append(set(tier.fresh))
        tier.fresh.clear()

    # The one that grows; with the first sample of the next one it is written for the last time.
    assert seen[7] == {0}
    assert seen[8] == {0, 480_000}
    assert seen[9] == {480_000}


@pytest.mark.parametrize("damaged", [b"", b"no block", Block().dump()])
def test_what_is_no_block_is_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="block"):
        Block.load(damaged)
    cut = bytearray(written(filled([point(0, 1), point(60, 2)]), {0})[0])
    cut[10] ^= 0xFF
    with pytest.raises(ValueError, match=r"block|form"):
        Block.load(bytes(cut))


def test_a_few_blocks_are_kept_open_and_not_all() -> None:
    tier = filled([point(60 * minute, minute) for minute in range(400)])
    opened, latest = Opened(limit=4), point(24_000, 400)
    for minute in range(399):
        tier.at(minute * 60_000, latest, opened)

    assert len(opened._views) == 4


def test_time_and_counts_never_run_backwards() -> None:
    random = Random(23)
    requests, points = 0.0, []
    for second in range(0, 40_000, 10):
        if random.random() < 0.2:
            requests += random.randint(0, 9)
        points.append(point(second, requests))
    tier, opened = filled(points), Opened()
    found = [tier.at(second * 1000, points[-1], opened) for second in range(0, 40_000, 13)]

    for one, other in pairwise(found):
        assert all(b >= a for a, b in zip(one.total, other.total, strict=True))
        assert other.mark >= one.mark
    assert found[0].total == NOTHING
