from __future__ import annotations

import math
from random import Random

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.slo import summarise
from metrics.targets import Target

START = 1_700_000_000.0


def target(
    replica: str = "0", *, run: str = "run", environment: str = "dev", version: str = "1"
) -> Target:
    return Target(
        run_id=run, model="model", environment=environment, replica=replica, version=version
    )


def scrape(
    monitor: EmbeddedMonitor,
    instruments: InferenceInstruments,
    *,
    seconds: range,
    of: Target | None = None,
    each: tuple[tuple[str, float], ...] = (),
) -> None:
    """A scrape every second step, and the same requests between every two of them."""
    for second in seconds:
        assert monitor.ingest(of or target(), START + second, instruments.text())
        for code, latency in each:
            instruments.observe(code, latency)


def test_a_minute_of_traffic_reads_as_its_caller_counted_it() -> None:
    random = Random(1)
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    latencies = []
    events = sorted(random.uniform(0, 60) for _ in range(1800))
    at = -2.6
    for event in events:
        while at < event:
            monitor.ingest(target(), START + at, instruments.text())
            at += 2
        latency = random.lognormvariate(-3.5, 0.4)
        latencies.append(latency)
        instruments.observe("2xx", latency)
    monitor.ingest(target(), START + at, instruments.text())

    shown = summarise(monitor.read("run", None, START + 60.3, 62.9))

    exact = sorted(latencies)[math.ceil(0.95 * len(latencies)) - 1]
    assert shown.rps == pytest.approx(30, rel=0.05)
    assert shown.p95_duration_ms == pytest.approx(1000 * exact, rel=0.05)
    assert shown.latency_p95_ms == pytest.approx(1000 * exact, rel=0.05)
    assert shown.availability == 100
    assert shown.data_status == "ok"


def test_traffic_shows_with_the_next_scrape() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    scrape(monitor, instruments, seconds=range(0, 100, 2))
    assert monitor.read("run", None, START + 99).rps == 0
    instruments.observe("2xx", 0.01)
    monitor.ingest(target(), START + 100, instruments.text())

    assert monitor.read("run", None, START + 100).rps == pytest.approx(1 / 60, rel=0.05)


def test_errors_are_5xx_only() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    each = (("2xx", 0.01), ("4xx", 0.01), ("5xx", 0.01), ("2xx", 0.01))
    scrape(monitor, instruments, seconds=range(0, 122, 2), each=each)

    shown = summarise(monitor.read("run", None, START + 120))

    assert shown.rps == pytest.approx(2)
    assert shown.errors_percent == pytest.approx(25)
    assert shown.availability == pytest.approx(75)


def test_environments_are_summed_or_told_apart() -> None:
    monitor = EmbeddedMonitor()
    for environment, number in (("dev", 1), ("prod", 3)):
        scrape(
            monitor,
            InferenceInstruments(None),
            seconds=range(0, 122, 2),
            of=target(environment=environment),
            each=(("2xx", 0.01),) * number,
        )

    assert monitor.read("run", "dev", START + 120).rps == pytest.approx(0.5)
    assert monitor.read("run", "prod", START + 120).rps == pytest.approx(1.5)
    assert monitor.read("run", None, START + 120).rps == pytest.approx(2)
    assert monitor.read("run", "stage", START + 120).is_empty


def test_a_quantile_of_several_replicas_merges_their_buckets() -> None:
    monitor = EmbeddedMonitor()
    for replica, latency, number in (("0", 0.0101, 18), ("1", 0.9, 2)):
        scrape(
            monitor,
            InferenceInstruments(None),
            seconds=range(0, 122, 2),
            of=target(replica),
            each=(("2xx", latency),) * number,
        )

    # One request in ten is slow: the p95 is, which no mean of 10 ms and 900 ms would say.
    read = monitor.read("run", None, START + 120)
    assert read.p95_seconds == pytest.approx(0.9, rel=0.05)


def test_a_restarted_replica_neither_loses_nor_invents_requests() -> None:
    monitor, each = EmbeddedMonitor(), (("2xx", 0.01),) * 2
    scrape(monitor, InferenceInstruments(None), seconds=range(0, 62, 2), each=each)
    monitor.ingest(target(), START + 62, None)
    scrape(monitor, InferenceInstruments(None), seconds=range(64, 126, 2), each=each)

    read = monitor.read("run", None, START + 124, 124)

    # The two requests after the last scrape before the crash are nobody's to know.
    assert read.slo_total == pytest.approx(30 * 2 + 30 * 2)
    assert read.up == pytest.approx(62 / 63)


def test_requests_before_the_first_scrape_are_not_counted_as_a_jump() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    for _ in range(1_000_000):
        instruments._requests["2xx"] += 1
    scrape(monitor, instruments, seconds=range(0, 122, 2), each=(("2xx", 0.01),))

    assert monitor.read("run", None, START + 120).rps == pytest.approx(0.5)


def test_availability_without_traffic_is_the_share_of_good_scrapes_of_replicas() -> None:
    monitor = EmbeddedMonitor()
    for second in range(0, 40, 2):
        good = InferenceInstruments(None).text() if second < 30 else None
        monitor.ingest(target(), START + second, good)
        monitor.ingest(target("gateway"), START + second, InferenceInstruments(None).text())

    shown = summarise(monitor.read("run", None, START + 40))

    assert shown.availability == pytest.approx(75)
    assert shown.data_status == "no_traffic"


def test_refusals_of_the_service_itself_count_as_requests() -> None:
    monitor, refusals = EmbeddedMonitor(), InferenceInstruments(None)
    for second in range(0, 62, 2):
        monitor.ingest(target(), START + second, None)
        monitor.ingest(target("gateway"), START + second, refusals.text())
        refusals.observe("5xx", 0.0002)

    shown = summarise(monitor.read("run", None, START + 60))

    assert shown.errors_percent == 100
    assert shown.availability == 0
    assert shown.p95_duration_ms <= 1


def test_a_text_that_cannot_be_taken_whole_is_a_failed_scrape() -> None:
    monitor = EmbeddedMonitor()

    assert not monitor.ingest(target(), START, "inference_requests_total NaN\n")
    assert not monitor.ingest(target(), START + 2, "x" * 300_000)
    assert monitor.read("run", None, START + 2).up == 0


def test_a_dropped_target_still_counts_and_a_forgotten_run_does_not() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    scrape(monitor, instruments, seconds=range(0, 62, 2), each=(("2xx", 0.01),))
    monitor.drop(target())
    monitor.drop(target("never seen"))
    for second in range(60, 900, 10):
        monitor.ingest(target(run="other"), START + second, InferenceInstruments(None).text())

    read = monitor.read("run", None, START + 900)
    assert read.rps is None
    assert read.slo_total == pytest.approx(30, abs=1)
    assert summarise(read).data_status == "stale"

    monitor.forget("run")
    assert monitor.read("run", None, START + 900).is_empty
    assert len(monitor) == 1


def test_a_target_that_comes_back_goes_on_where_it_was() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    scrape(monitor, instruments, seconds=range(0, 62, 2), each=(("2xx", 0.01),))
    monitor.drop(target())
    scrape(monitor, instruments, seconds=range(62, 124, 2), each=(("2xx", 0.01),))

    assert monitor.read("run", None, START + 122, 122).slo_total == pytest.approx(61)
    assert len(monitor) == 1


def test_what_is_older_than_the_longest_window_is_forgotten() -> None:
    monitor = EmbeddedMonitor(slo_seconds=3600)
    scrape(monitor, InferenceInstruments(None), seconds=range(0, 62, 2))
    monitor.ingest(target(run="other"), START + 3700, None)

    assert len(monitor) == 1
    assert monitor.read("run", None, START + 3700).is_empty


def test_the_number_of_histories_is_bounded_and_ended_ones_go_first() -> None:
    monitor = EmbeddedMonitor(max_targets=3)
    text = InferenceInstruments(None).text()
    for number in range(3):
        monitor.ingest(target(str(number)), START + number, text)
    monitor.drop(target("1"))
    monitor.ingest(target("3"), START + 3, text)
    monitor.ingest(target("4"), START + 4, text)

    assert len(monitor) == 3
    assert monitor.read("run", None, START + 10).samples == 3
    assert monitor.read("run", None, START + 1.5).samples == 0


def test_a_sample_of_the_same_moment_is_taken_once() -> None:
    monitor, text = EmbeddedMonitor(), InferenceInstruments(None).text()
    for at in (START, START, START - 1, START + 2):
        monitor.ingest(target(), at, text)

    assert monitor.read("run", None, START + 2).samples == 2


def test_a_clock_that_was_put_back_starts_the_target_anew() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    scrape(monitor, instruments, seconds=range(7200, 7300, 2))
    scrape(monitor, instruments, seconds=range(0, 62, 2), each=(("2xx", 0.01),))

    assert monitor.read("run", None, START + 60).rps == pytest.approx(0.5, rel=0.05)


def test_a_reading_looks_at_the_runs_own_targets_only() -> None:
    monitor = EmbeddedMonitor()
    monitor.ingest(target(), START, InferenceInstruments(None).text())

    class Untouchable(dict):
        def items(self):
            raise AssertionError("another run was looked at")

    monitor._runs["other"] = Untouchable()
    assert monitor.read("run", None, START).samples == 1
