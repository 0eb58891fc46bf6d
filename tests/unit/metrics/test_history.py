from __future__ import annotations

from array import array
from random import Random

from metrics.exposition import LAYOUT
from metrics.history import Growth, Probes, Samples
from metrics.semantics import Window

FINE, COARSE, KEEP = 120_000, 300_000, 30 * 86_400_000
WIDTH = len(LAYOUT)


def vector(requests: float, bucket: int = 50) -> array:
    """Requests that all fell into one bucket."""
    values = [requests, 0.0, 0.0, *([0.0] * bucket), *([requests] * (WIDTH - 3 - bucket))]
    return array("d", values)


def samples(**changed: int) -> Samples:
    options = {"fine": FINE, "coarse": COARSE, "keep": KEEP, "coarse_bytes": 1 << 20}
    return Samples(**{**options, **changed})


def test_a_window_is_its_first_and_last_sample_and_their_number() -> None:
    kept = samples()
    for second in range(0, 62, 2):
        kept.add(second * 1000, vector(second * 10))

    found = kept.within(Window(start=10_000, end=50_999))

    assert found is not None
    assert (found.first_at, found.last_at, found.count) == (10_000, 50_000, 21)
    assert found.first[0] == 100
    assert found.grown[0] == 400


def test_version_3_leaves_out_a_sample_on_the_windows_start() -> None:
    kept = samples()
    for second in range(0, 62, 2):
        kept.add(second * 1000, vector(second))

    found = kept.within(Window(start=10_000, end=50_000), prom3=True)

    assert found is not None
    assert (found.first_at, found.count) == (12_000, 20)


def test_a_window_without_samples_has_none() -> None:
    kept = samples()
    kept.add(100_000, vector(1))

    assert kept.within(Window(start=0, end=99_999)) is None
    assert kept.within(Window(start=100_001, end=200_000)) is None


def test_every_reset_adds_the_value_before_it() -> None:
    kept = samples()
    for at, value in enumerate([100, 150, 20, 30, 5, 6]):
        kept.add(at * 1000, vector(value))

    found = kept.within(Window(start=0, end=10_000))

    # 50 + (20 after a restart) + 10 + (5 after another) + 1
    assert found is not None
    assert found.grown[0] == 86
    assert found.first[0] == 100


def test_a_window_that_begins_after_a_reset_starts_from_the_raw_value() -> None:
    kept = samples()
    for at, value in enumerate([100, 150, 20, 30]):
        kept.add(at * 1000, vector(value))

    found = kept.within(Window(start=2000, end=10_000))

    assert found is not None
    assert (found.first[0], found.grown[0]) == (20, 10)


def test_a_window_over_the_whole_life_is_exact_however_old_it_is() -> None:
    random = Random(3)
    kept, value, total, first = samples(), 40.0, 0.0, 40.0
    for number in range(4000):
        kept.add(number * 5000 + 77, vector(value))
        step = random.randint(0, 9)
        if number == 3999:
            break
        if random.random() < 0.001:
            value = float(step)
        else:
            value += step
        total += step

    found = kept.within(Window(start=0, end=3999 * 5000 + 77))

    assert found is not None
    assert (found.first_at, found.count, found.first[0]) == (77, 4000, first)
    assert found.grown[0] == total


def test_a_window_that_begins_in_the_coarse_part_begins_at_its_next_sample() -> None:
    kept = samples()
    for number in range(1000):
        kept.add(number * 5000, vector(number * 10, bucket=number % 3))

    found = kept.within(Window(start=301_000, end=5_000_000))

    assert found is not None
    assert found.first_at == 600_000
    assert found.first[0] == 1200
    assert found.count == 1000 - 120


def test_what_is_older_than_the_longest_window_is_forgotten() -> None:
    kept = samples(keep=3_600_000)
    for number in range(3000):
        kept.add(number * 5000, vector(number))
    kept.expire(2999 * 5000)

    found = kept.within(Window(start=0, end=2999 * 5000))

    assert found is not None
    assert 2999 * 5000 - 3_600_000 <= found.first_at <= 2999 * 5000 - 3_300_000
    assert found.first[0] == found.first_at / 5000
    assert found.grown[0] == 2999 - found.first[0]


def test_the_newest_sample_outlives_every_trimming() -> None:
    kept = samples()
    for number in range(100):
        kept.add(number * 5000, vector(number))
    kept.close()
    kept.expire(10 * KEEP)

    found = kept.within(Window(start=0, end=10 * KEEP))

    assert found is not None
    assert found.last_at == 99 * 5000


def test_memory_is_bounded_and_the_whole_life_stays_exact() -> None:
    random = Random(5)
    limit = 40_000
    kept, values = samples(coarse_bytes=limit), [0.0] * 341
    for number in range(3000):
        for _ in range(10):
            values[random.randrange(193)] += 1
        cumulated, total = [], 0.0
        for value in values:
            total += value
            cumulated.append(total)
        kept.add(number * COARSE, array("d", [total, 0, 0, *cumulated]))
    found = kept.within(Window(start=0, end=3000 * COARSE))

    assert kept.size < limit + 100 * 8 * WIDTH
    assert found is not None
    assert (found.first_at, found.count) == (0, 3000)
    assert found.grown[0] == 2999 * 10
    part = kept.within(Window(start=1000 * COARSE, end=3000 * COARSE))
    assert part is not None
    assert part.first[0] == (part.first_at / COARSE + 1) * 10
    assert part.first[-1] == part.first[0]


def test_an_idle_target_keeps_one_vector_only() -> None:
    kept = samples()
    for number in range(60):
        kept.add(number * 2000, vector(7))

    assert kept.size < 10 * 8 * WIDTH


def test_growth_is_packed_without_loss() -> None:
    random = Random(11)
    for scale in (1.0, 0.5, 1e12):
        one = [random.randint(0, 5) * scale for _ in range(WIDTH)]
        two = [value + random.randint(0, 1) * scale for value in one]
        three = [value + random.randint(0, 1) * scale for value in two]
        steps = [Growth.pack(one, two), Growth.pack(two, three)]

        assert list(Growth.apply(one, steps)) == three
        assert list(Growth.apply(one, [Growth.merge(*steps)])) == three


def test_good_scrapes_are_counted_in_any_window() -> None:
    probes = Probes(fine=FINE, coarse=COARSE, keep=KEEP)
    for number in range(40):
        probes.add(number * 5000, up=number % 4 != 0)

    assert probes.within(Window(start=0, end=195_000)) == (30, 40)
    assert probes.within(Window(start=100_000, end=115_000)) == (3, 4)
    assert probes.within(Window(start=100_000, end=115_000), prom3=True) == (3, 3)
    assert probes.within(Window(start=500_000, end=600_000)) == (0, 0)
    assert probes.last(101_000) == 100_000


def test_good_scrapes_of_a_whole_life_are_exact_and_expire() -> None:
    probes = Probes(fine=FINE, coarse=COARSE, keep=3_600_000)
    for number in range(3000):
        probes.add(number * 5000, up=number >= 100)

    assert probes.within(Window(start=0, end=15_000_000)) == (2900, 3000)
    probes.expire(15_000_000)
    good, all_of_them = probes.within(Window(start=0, end=15_000_000))
    assert good == all_of_them
    assert 660 <= all_of_them <= 720
    probes.close()
    assert probes.last(15_000_000) == 14_995_000
    assert probes.last(0) is None
