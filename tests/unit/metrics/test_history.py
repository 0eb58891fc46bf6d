from __future__ import annotations

from array import array
from random import Random

import pytest

from metrics.exposition import BUCKETS_FROM, LAYOUT
from metrics.history import DAY, HOUR, MINUTE, TIERS, History, Newest
from metrics.semantics import Window, increase
from metrics.tiers import Opened, dump

FINE = 330_000
WIDTH = len(LAYOUT)
OPENED = Opened()


def vector(requests: float, bucket: int = 50) -> array[float]:
    """Requests that all fell into one bucket."""
    rest = [0.0] * (BUCKETS_FROM - 1 + bucket)
    return array("d", [requests, *rest, *([requests] * (WIDTH - len(rest) - 1))])


def history() -> History:
    return History(fine=FINE)


def steady(seconds: int, every: int = 5, per_scrape: float = 10) -> History:
    """A scrape every so many seconds, the same number of requests between every two."""
    kept = history()
    for number in range(seconds // every + 1):
        kept.add(number * every * 1000, vector(number * per_scrape))
    return kept


def grown(kept: History, start: int, end: int) -> float:
    found = kept.span(Window(start=start, end=end), OPENED)
    assert found is not None
    return found.grown[0]


def test_a_window_is_its_first_and_last_sample_and_their_number() -> None:
    kept = steady(60, every=2)

    found = kept.span(Window(start=10_000, end=50_999), OPENED)

    assert found is not None
    assert (found.first_at, found.last_at, found.count) == (10_000, 50_000, 21)
    assert (found.first[0], found.grown[0]) == (50, 200)


def test_version_3_leaves_out_a_sample_on_the_windows_start() -> None:
    found = steady(60, every=2).span(Window(start=10_000, end=50_000), OPENED, prom3=True)

    assert found is not None
    assert (found.first_at, found.count) == (12_000, 20)


def test_a_window_without_samples_has_none() -> None:
    kept = history()
    assert kept.span(Window(start=0, end=10), OPENED) is None
    kept.add(100_000, vector(1))

    assert kept.span(Window(start=0, end=99_999), OPENED) is None
    assert kept.span(Window(start=100_001, end=200_000), OPENED) is None
    kept.add(120_000, vector(1))
    assert kept.span(Window(start=101_000, end=119_000), OPENED) is None


def test_every_reset_adds_the_value_before_it() -> None:
    kept = history()
    for at, value in enumerate([100, 150, 20, 30, 5, 6]):
        kept.add(at * 1000, vector(value))

    found = kept.span(Window(start=0, end=10_000), OPENED)

    # 50 + (20 after a restart) + 10 + (5 after another) + 1
    assert found is not None
    assert (found.first[0], found.grown[0]) == (100, 86)
    late = kept.span(Window(start=2000, end=10_000), OPENED)
    assert late is not None
    assert (late.first[0], late.grown[0]) == (20, 10 + 5 + 1)


def test_a_window_over_the_whole_life_is_exact_however_old_it_is() -> None:
    random = Random(3)
    kept, value, total = history(), 40.0, 0.0
    for number in range(4000):
        kept.add(number * 5000 + 77, vector(value))
        step = random.randint(0, 9)
        if number == 3999:
            break
        value = float(step) if random.random() < 0.001 else value + step
        total += step

    found = kept.span(Window(start=0, end=3999 * 5000 + 77), OPENED)

    assert found is not None
    assert (found.first_at, found.count, found.first[0]) == (77, 4000, 40)
    assert found.grown[0] == total


def test_steady_traffic_reads_the_same_in_every_window() -> None:
    seconds = 4 * 86_400
    kept = steady(seconds, every=60, per_scrape=600)
    end = seconds * 1000

    for window in (330, 400, 3600, 21_600, 100_000, 259_200, 300_000, 1_000_000):
        expected = min(window, seconds) * 10
        assert grown(kept, end - window * 1000, end) == pytest.approx(expected, abs=600)
        found = kept.span(Window(start=end - window * 1000, end=end), OPENED)
        assert found is not None
        assert found.count == pytest.approx(min(window, seconds) / 60 + 1, abs=1)


def test_a_burst_is_found_in_the_window_it_fell_into_and_in_no_other() -> None:
    kept, requests, now = history(), 0.0, 8 * 86_400
    bursts = {now - 1800: 100, now - 4 * 3600: 200, now - 2 * 86_400: 400, now - 7 * 86_400: 800}
    for second in range(0, now + 1, 60):
        requests += bursts.get(second, 0)
        kept.add(second * 1000, vector(requests))

    for window, expected in ((3600, 100), (21_600, 300), (259_200, 700), (8 * 86_400, 1500)):
        assert grown(kept, (now - window) * 1000, now * 1000) == expected


def test_a_past_window_is_read_from_both_sides() -> None:
    kept = steady(86_400, every=10, per_scrape=100)

    assert grown(kept, 20 * HOUR, 21 * HOUR) == pytest.approx(36_000, rel=0.01)
    assert grown(kept, 2 * HOUR, 3 * HOUR) == pytest.approx(36_000, rel=0.01)
    tally = kept.tally(Window(start=20 * HOUR, end=21 * HOUR), OPENED)
    assert tally.samples == pytest.approx(360, abs=2)


def test_counters_that_begin_high_do_not_count_as_a_jump() -> None:
    kept = history()
    for number in range(2000):
        kept.add(number * 5000, vector(1_000_000 + number))

    assert grown(kept, 0, 10_000_000) == 1999


def test_what_is_older_than_every_tier_is_forgotten() -> None:
    kept = steady(86_400, every=300)
    later = 40 * DAY
    for minute in range(0, 60 * 24, 5):
        kept.add(later + minute * MINUTE, vector(100_000 + minute))
    kept.expire(later + DAY)

    found = kept.span(Window(start=0, end=later + DAY), OPENED)
    assert found is not None
    assert found.first_at >= 0
    assert found.grown[0] >= 1435
    assert kept.size < 1_000_000


def test_the_arrays_that_are_held_are_counted_as_they_come_and_go() -> None:
    random, kept, count = Random(3), history(), 0
    for number in range(400):
        count = random.choice((count, count + 1, count + 1, 0))
        kept.add(number * 5000, vector(count))
        held = {id(one) for one in (*kept._raws, *kept._bases)}
        assert kept._vectors in {len(held), len(held) - 1}


def test_the_newest_sample_outlives_every_trimming() -> None:
    kept = steady(500)
    kept.close()
    kept.expire(100 * DAY)

    found = kept.span(Window(start=0, end=100 * DAY), OPENED)
    assert found is not None
    assert found.last_at == 500_000


def test_good_scrapes_are_counted_in_any_window() -> None:
    kept = history()
    for number in range(40):
        kept.add(number * 5000, vector(1) if number % 4 else None)

    def tally(start: int, end: int, *, prom3: bool = False) -> tuple[float, float]:
        found = kept.tally(Window(start=start, end=end), OPENED, prom3=prom3)
        return found.samples, found.scrapes

    assert tally(0, 195_000) == (30, 40)
    assert tally(100_000, 115_000) == (3, 4)
    assert tally(100_000, 115_000, prom3=True) == (3, 3)
    assert tally(500_000, 600_000) == (0, 0)
    assert kept.last_before(101_000) == 100_000


def test_a_target_that_never_answered_has_scrapes_and_no_samples() -> None:
    kept = history()
    for second in range(0, 1000, 5):
        kept.add(second * 1000, None)

    tally = kept.tally(Window(start=0, end=1_000_000), OPENED)
    assert (tally.scrapes, tally.samples) == (200, 0)
    assert kept.span(Window(start=0, end=1_000_000), OPENED) is None


def test_a_long_outage_shows_in_the_hours_it_was_in() -> None:
    kept = history()
    for second in range(0, 20 * 3600, 10):
        down = 10 * 3600 <= second < 12 * 3600
        kept.add(second * 1000, None if down else vector(1))

    def share(start: int, end: int) -> float:
        found = kept.tally(Window(start=start * HOUR, end=end * HOUR), OPENED)
        return found.samples / found.scrapes

    assert share(0, 20) == pytest.approx(0.9, abs=0.001)
    assert share(8, 10) == pytest.approx(1, abs=0.02)
    assert share(10, 12) == pytest.approx(0, abs=0.02)
    assert share(13, 19) == 1


def test_the_mean_of_requests_in_progress_is_over_the_good_scrapes() -> None:
    kept = history()
    for second in range(0, 4000, 5):
        kept.add(second * 1000, vector(0) if second % 10 else None, in_progress=second // 1000)

    near = kept.tally(Window(start=3_800_000, end=3_900_000), OPENED)
    far = kept.tally(Window(start=1_100_000, end=1_900_000), OPENED)
    assert near.load / near.samples == 3
    assert far.load / far.samples == pytest.approx(1, rel=0.02)


def resumed(kept: History, *, after: Newest | None = None) -> History:
    again = history()
    for one, other in zip(kept.tiers, again.tiers, strict=True):
        other.take({start: dump(block) for start, block in one.blocks(one.fresh).items()}, Opened())
    again.resume(after or kept.newest())
    return again


@pytest.mark.parametrize("pause", [0, 4, 100, 90_000])
def test_a_history_goes_on_after_a_restart_as_if_there_had_been_none(pause: int) -> None:
    random = Random(5)
    kept, value = history(), 0.0
    for second in range(0, 50_000, 5):
        value += random.randint(0, 4)
        kept.add(second * 1000, vector(value) if random.random() > 0.02 else None)
    again = resumed(kept)
    begun = (49_995 + 5 + pause) * 1000
    for number in range(400):
        for one in (kept, again):
            one.add(begun + number * 5000, vector(number * 2.0))

    end = begun + 399 * 5000
    for window in (60_000, 300_000):
        wanted = Window(start=end - window, end=end)
        assert again.span(wanted, OPENED) == kept.span(wanted, OPENED)
    for window in (HOUR, 6 * HOUR, DAY, 40 * DAY):
        assert grown(again, end - window, end) == pytest.approx(
            grown(kept, end - window, end), rel=0.02
        )
        one = again.tally(Window(start=end - window, end=end), OPENED)
        other = kept.tally(Window(start=end - window, end=end), OPENED)
        assert one.samples == pytest.approx(other.samples, rel=0.02)
    whole = Window(start=0, end=end)
    assert again.span(whole, OPENED) == kept.span(whole, OPENED)
    assert again.tally(whole, OPENED) == kept.tally(whole, OPENED)


def test_time_without_the_service_has_no_samples_in_it() -> None:
    kept = steady(3600, every=5)
    again = resumed(kept)
    for number in range(1000):
        again.add(3 * HOUR + number * 5000, vector(number))

    outage = Window(start=90 * MINUTE, end=150 * MINUTE)
    found = again.span(outage, OPENED)
    assert found is None or increase(found, outage) is None
    assert again.tally(outage, OPENED).scrapes < 1


def test_a_target_that_failed_at_the_end_resumes_with_its_last_good_sample() -> None:
    kept = steady(100)
    kept.add(105_000, None)
    again = resumed(kept)
    again.add(110_000, vector(3))

    found = again.span(Window(start=0, end=110_000), OPENED)
    assert found is not None
    assert found.grown[0] == 200 + 3
    assert again.tally(Window(start=0, end=110_000), OPENED) == (23, 22, 0)


def test_an_idle_target_costs_little_for_a_month() -> None:
    kept = history()
    for minute in range(0, 30 * 24 * 60, 3):
        kept.add(minute * MINUTE, vector(7))
    kept.expire(30 * DAY)

    assert kept.size < 12_000


def test_a_busy_month_fits_into_a_megabyte() -> None:
    random = Random(9)
    kept, requests = history(), 0.0
    buckets = [0.0] * (WIDTH - BUCKETS_FROM)
    hours = 5
    for second in range(0, hours * 3600, 20):
        for _ in range(20):
            requests += 1
            buckets[min(int(random.lognormvariate(4.6, 0.2)), len(buckets) - 1)] += 1
        total, values = 0.0, [requests, 0, 0, 0, 0, 0]
        for value in buckets:
            total += value
            values.append(total)
        kept.add(second * 1000, array("d", values))

    minutes, fives, hourly = (tier.size for tier in kept.tiers)
    month = minutes + fives * (75 / hours) + hourly * (720 / hours)
    assert month < 1_000_000
    assert [
        plan.keep >= seconds * 1000
        for plan, seconds in zip(TIERS, (21_600, 259_200, 30 * 86_400), strict=True)
    ] == [True] * 3
