"""PromQL's rules on figures worked out by hand; times in milliseconds."""

from __future__ import annotations

import math

import pytest

from metrics.semantics import Span, Window, histogram_quantile, increase

MINUTE = Window(start=0, end=60_000)


def span(first_at: int, last_at: int, count: int, first: float, grown: float) -> Span:
    return Span(first_at=first_at, last_at=last_at, count=count, first=[first], grown=[grown])


def grew(of: Span, window: Window = MINUTE, *, prom3: bool = False) -> float:
    values = increase(of, window, prom3=prom3)
    assert values is not None
    return values[0]


def test_one_sample_has_no_increase() -> None:
    assert increase(span(30_000, 30_000, 1, 5, 0), MINUTE) is None


def test_samples_on_both_edges_are_not_extrapolated() -> None:
    assert grew(span(0, 60_000, 13, 1000, 120)) == 120


def test_gaps_below_1_1_spacings_are_extrapolated_to_the_edges() -> None:
    # Samples from 3 s to 57 s, six seconds apart: 54 s grew 108, the missing 6 s are added.
    assert grew(span(3000, 57_000, 10, 1000, 108)) == pytest.approx(120)


def test_wider_gaps_are_extrapolated_by_half_a_spacing() -> None:
    # From 20 s to 40 s, five seconds apart: 20 s grew 40, 2.5 s are added on each side.
    assert grew(span(20_000, 40_000, 5, 1000, 40)) == pytest.approx(50)


def test_a_gap_of_exactly_1_1_spacings_counts_as_wide() -> None:
    # Ten seconds apart; 11 s before the first sample: half a spacing there, 9 s at the end.
    assert grew(span(11_000, 51_000, 5, 1e9, 40)) == pytest.approx(40 * (40 + 5 + 9) / 40)


def test_a_counter_that_began_at_zero_is_not_extrapolated_to_the_left() -> None:
    assert grew(span(3000, 57_000, 10, 0, 108)) == pytest.approx(108 * 57 / 54)


def test_the_left_edge_stops_where_the_counter_would_have_been_zero() -> None:
    # Two per second, 2 at 3 s: zero was at 2 s, so one second is added and not three.
    assert grew(span(3000, 57_000, 10, 2, 108)) == pytest.approx(108 * (54 + 1 + 3) / 54)


def test_a_counter_that_does_not_grow_has_an_increase_of_zero() -> None:
    assert grew(span(3000, 57_000, 10, 7, 0)) == 0


def test_version_2_clips_at_zero_before_it_looks_at_the_gap_and_version_3_after() -> None:
    # Born at 50, +50 every 10 s, seen after four samples at 30 s ... 60 s: the zero lies 10 s
    # before the birth. Version 2 goes there (200); version 3 finds the gap of 30 s too wide
    # and takes half a spacing (175).
    born = span(30_000, 60_000, 4, 50, 150)

    assert grew(born) == pytest.approx(200)
    assert grew(born, prom3=True) == pytest.approx(175)


def test_the_start_of_a_window_belongs_to_it_in_version_2_only() -> None:
    assert MINUTE.first(prom3=False) == 0
    assert MINUTE.first(prom3=True) == 1
    assert MINUTE.seconds == 60


def test_several_series_of_a_target_are_clipped_one_by_one() -> None:
    several = Span(first_at=3000, last_at=57_000, count=10, first=[0, 1000, 0], grown=[108, 108, 0])

    values = increase(several, MINUTE)
    assert values == pytest.approx([108 * 57 / 54, 120, 0])


BOUNDS = (0.1, 0.2, 0.4)


def test_a_quantile_is_linear_inside_its_bucket() -> None:
    # Ranks 0..10 in (0, 0.1], 10..30 in (0.1, 0.2]; the median's rank is 20.
    assert histogram_quantile(0.5, BOUNDS, [10, 30, 40, 40]) == pytest.approx(0.15)


def test_the_first_bucket_begins_at_zero() -> None:
    assert histogram_quantile(0.5, BOUNDS, [10, 10, 10, 10]) == pytest.approx(0.05)


def test_a_quantile_beyond_the_last_bound_is_the_last_bound() -> None:
    assert histogram_quantile(0.95, BOUNDS, [0, 0, 1, 10]) == 0.4


def test_a_first_bound_below_zero_is_its_own_answer() -> None:
    assert histogram_quantile(0.5, (-1.0, 1.0), [10, 10, 10]) == -1


def test_no_observations_have_no_quantile() -> None:
    assert math.isnan(histogram_quantile(0.95, BOUNDS, [0, 0, 0, 0]))
    assert math.isnan(histogram_quantile(0.95, (), [5]))
    assert math.isnan(histogram_quantile(0.95, BOUNDS, [0, 0, 0, math.nan]))


def test_counts_that_fall_are_lifted_to_the_one_before() -> None:
    falling, lifted = [10, 8, 20, 20], [10, 10, 20, 20]

    for prom3 in (False, True):
        one = histogram_quantile(0.75, BOUNDS, falling, prom3=prom3)
        assert one == histogram_quantile(0.75, BOUNDS, lifted, prom3=prom3)


def test_version_3_takes_counts_a_billionth_of_a_thousandth_apart_as_equal() -> None:
    # All but a rounding error lies in the first bucket: version 2 finds the highest rank in
    # the last one, version 3 does not.
    counts = [10.0, 10.0, 10.0 + 2e-12, 10.0 + 2e-12]

    assert histogram_quantile(1.0, BOUNDS, counts) == pytest.approx(0.4)
    assert histogram_quantile(1.0, BOUNDS, counts, prom3=True) == pytest.approx(0.1)


def test_a_part_of_a_targets_series_can_be_asked_for_alone() -> None:
    several = Span(first_at=0, last_at=60_000, count=13, first=[0, 9, 9], grown=[1, 2, 3])

    assert increase(several, MINUTE, part=slice(1, 3)) == [2, 3]
