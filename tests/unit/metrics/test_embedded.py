from __future__ import annotations

import math
from random import Random

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.names import LATENCY_BOUNDS
from metrics.reading import Question, Reading
from metrics.slo import Summary, red_question, summarise
from metrics.targets import Target
from metrics.tiers import Plan

START = 1_700_000_000.0


def target(
    replica: str = "0", *, run: str = "run", environment: str = "dev", version: str = "1"
) -> Target:
    return Target(
        run_id=run, model="model", environment=environment, replica=replica, version=version
    )


def ask(
    monitor: EmbeddedMonitor,
    at: float,
    seconds: float = 60,
    *,
    run: str = "run",
    environment: str | None = None,
    bound: float | None = None,
) -> Reading:
    question = Question(
        seconds=seconds,
        environment=environment,
        quantiles=(0.95,),
        bound=bound,
        health=True,
        in_progress=True,
    )
    return monitor.read(run, question, START + at)


def shown(monitor: EmbeddedMonitor, at: float, life: float = 3600) -> Summary:
    red, slo = (
        monitor.read("run", red_question(None, seconds), START + at) for seconds in (60, life)
    )
    return summarise(red, slo)


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

    found = shown(monitor, 60.3, 62.9)

    exact = sorted(latencies)[math.ceil(0.95 * len(latencies)) - 1]
    assert found.rps == pytest.approx(30, rel=0.05)
    assert found.p95_duration_ms == pytest.approx(1000 * exact, rel=0.05)
    assert found.latency_p95_ms == pytest.approx(1000 * exact, rel=0.05)
    assert found.availability == 100
    assert found.data_status == "ok"


def test_traffic_shows_with_the_next_scrape() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    scrape(monitor, instruments, seconds=range(0, 100, 2))
    assert ask(monitor, 99).requests == 0
    instruments.observe("2xx", 0.01)
    monitor.ingest(target(), START + 100, instruments.text())

    assert ask(monitor, 100).requests == pytest.approx(1, rel=0.05)


def test_errors_are_5xx_only() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    each = (("2xx", 0.01), ("4xx", 0.01), ("5xx", 0.01), ("2xx", 0.01))
    scrape(monitor, instruments, seconds=range(0, 122, 2), each=each)

    found = shown(monitor, 120)

    assert found.rps == pytest.approx(2)
    assert found.errors_percent == pytest.approx(25)
    assert found.availability == pytest.approx(75)


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

    assert ask(monitor, 120, environment="dev").requests == pytest.approx(30)
    assert ask(monitor, 120, environment="prod").requests == pytest.approx(90)
    assert ask(monitor, 120).requests == pytest.approx(120)
    assert ask(monitor, 120, environment="stage").is_empty


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
    assert ask(monitor, 120).durations[0] == pytest.approx(0.9, rel=0.05)


def test_a_restarted_replica_neither_loses_nor_invents_requests() -> None:
    monitor, each = EmbeddedMonitor(), (("2xx", 0.01),) * 2
    scrape(monitor, InferenceInstruments(None), seconds=range(0, 62, 2), each=each)
    monitor.ingest(target(), START + 62, None)
    scrape(monitor, InferenceInstruments(None), seconds=range(64, 126, 2), each=each)

    read = ask(monitor, 124, 124)

    # The two requests after the last scrape before the crash are nobody's to know.
    assert read.requests == pytest.approx(30 * 2 + 30 * 2)
    assert read.up == pytest.approx(62 / 63)


def test_requests_before_the_first_scrape_are_not_counted_as_a_jump() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    for _ in range(1_000_000):
        instruments._requests["2xx"] += 1
    scrape(monitor, instruments, seconds=range(0, 122, 2), each=(("2xx", 0.01),))

    assert ask(monitor, 120).requests == pytest.approx(30)


def test_availability_without_traffic_is_the_share_of_good_scrapes_of_replicas() -> None:
    monitor = EmbeddedMonitor()
    for second in range(0, 40, 2):
        good = InferenceInstruments(None).text() if second < 30 else None
        monitor.ingest(target(), START + second, good)
        monitor.ingest(target("gateway"), START + second, InferenceInstruments(None).text())

    found = shown(monitor, 40)

    assert found.availability == pytest.approx(75)
    assert found.data_status == "no_traffic"


def test_refusals_of_the_service_itself_count_as_requests() -> None:
    monitor, refusals = EmbeddedMonitor(), InferenceInstruments(None)
    for second in range(0, 62, 2):
        monitor.ingest(target(), START + second, None)
        monitor.ingest(target("gateway"), START + second, refusals.text())
        refusals.observe("5xx", 0.0002)

    found = shown(monitor, 60)

    assert found.errors_percent == 100
    assert found.availability == 0
    assert found.p95_duration_ms <= 1


def test_a_text_that_cannot_be_taken_whole_is_a_failed_scrape() -> None:
    monitor = EmbeddedMonitor()

    assert not monitor.ingest(target(), START, "inference_requests_total NaN\n")
    assert not monitor.ingest(target(), START + 2, "x" * 300_000)
    assert ask(monitor, 2).up == 0


def test_a_dropped_target_still_counts_and_a_forgotten_run_does_not() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    scrape(monitor, instruments, seconds=range(0, 62, 2), each=(("2xx", 0.01),))
    monitor.drop(target())
    monitor.drop(target("never seen"))
    for second in range(60, 900, 10):
        monitor.ingest(target(run="other"), START + second, InferenceInstruments(None).text())

    assert ask(monitor, 900).requests is None
    assert ask(monitor, 900, 3600).requests == pytest.approx(30, abs=1)
    assert shown(monitor, 900).data_status == "stale"

    monitor.forget("run")
    assert ask(monitor, 900, 3600).is_empty
    assert len(monitor) == 1
    assert monitor.gone == {target().id}


def test_a_target_that_comes_back_goes_on_where_it_was() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    scrape(monitor, instruments, seconds=range(0, 62, 2), each=(("2xx", 0.01),))
    monitor.drop(target())
    scrape(monitor, instruments, seconds=range(62, 124, 2), each=(("2xx", 0.01),))

    assert ask(monitor, 122, 122).requests == pytest.approx(61)
    assert len(monitor) == 1


def test_what_is_older_than_every_tier_is_forgotten() -> None:
    monitor = EmbeddedMonitor(plans=(Plan(spacing=60_000, keep=3_600_000, length=10),))
    scrape(monitor, InferenceInstruments(None), seconds=range(0, 62, 2))
    monitor.ingest(target(run="other"), START + 3700, None)

    assert len(monitor) == 1
    assert ask(monitor, 3700, 7200).is_empty


def test_the_number_of_histories_is_bounded_and_ended_ones_go_first() -> None:
    monitor = EmbeddedMonitor(max_targets=3)
    text = InferenceInstruments(None).text()
    for number in range(3):
        monitor.ingest(target(str(number)), START + number, text)
    monitor.drop(target("1"))
    monitor.ingest(target("3"), START + 3, text)

    assert monitor.crowd == (3, 0, 0)
    assert ask(monitor, 10).scrapes == 3
    assert ask(monitor, 1.5).scrapes == 1
    assert monitor.gone == {target("1").id}


def test_a_sample_of_the_same_moment_is_taken_once() -> None:
    monitor, text = EmbeddedMonitor(), InferenceInstruments(None).text()
    for at in (START, START, START - 1, START + 2):
        monitor.ingest(target(), at, text)

    assert ask(monitor, 2).scrapes == 2


def test_a_target_from_the_future_is_taken_back_to_now_and_keeps_its_counts() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    scrape(monitor, instruments, seconds=range(7200, 7300, 2), each=(("2xx", 0.01),))
    scrape(monitor, instruments, seconds=range(0, 62, 2), each=(("2xx", 0.01),))

    assert ask(monitor, 60).requests == pytest.approx(30, rel=0.05)
    assert monitor.gone == set()


def test_a_reading_looks_at_the_runs_own_targets_only() -> None:
    monitor = EmbeddedMonitor()
    monitor.ingest(target(), START, InferenceInstruments(None).text())

    class Untouchable(dict):
        def items(self):
            raise AssertionError("another run was looked at")

    monitor._runs["other"] = Untouchable()
    assert ask(monitor, 0).scrapes == 1


def test_errors_are_told_apart_by_whose_fault_they_were() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    for second in range(0, 122, 2):
        monitor.ingest(target(), START + second, instruments.text())
        for code, overloaded in (("2xx", False), ("4xx", False), ("5xx", False), ("5xx", True)):
            instruments.observe(code, 0.01, overloaded=overloaded)

    faults = shown(monitor, 120).faults
    assert faults.as_json() == {
        "clientPercent": pytest.approx(25),
        "modelPercent": pytest.approx(25),
        "overloadPercent": pytest.approx(25),
    }


def test_quick_answers_are_counted_at_their_bound() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    each = (("2xx", 0.1), ("2xx", 0.1001), ("2xx", 0.05))
    scrape(monitor, instruments, seconds=range(0, 122, 2), each=each)

    assert 0.1 in LATENCY_BOUNDS
    assert ask(monitor, 120, bound=0.1).quick == pytest.approx(60)
    without = Question(seconds=60, bound=0.1)
    assert monitor.read("run", without, START + 120).quick == pytest.approx(60)
    assert monitor.read("run", without, START + 120).durations == ()


def test_requests_under_way_are_averaged_and_summed_over_the_replicas() -> None:
    monitor = EmbeddedMonitor()
    for replica, number in (("0", 2), ("1", 3)):
        instruments = InferenceInstruments(None)
        instruments.in_progress.value = number
        scrape(monitor, instruments, seconds=range(0, 62, 2), of=target(replica))

    assert ask(monitor, 60).in_progress == 5


def test_probes_stand_for_the_availability_of_a_deployment_that_nobody_uses() -> None:
    monitor = EmbeddedMonitor()
    own, replica = InferenceInstruments(None, probes=True), InferenceInstruments(None)
    for second in range(0, 200, 2):
        monitor.ingest(target(), START + second, replica.text())
        monitor.ingest(target("gateway"), START + second, own.text())
        if second % 20 == 0:
            own.probe(passed=second % 100 != 0)

    found = shown(monitor, 200)
    assert (found.data_status, found.basis) == ("no_traffic", "probes")
    assert found.availability == pytest.approx(80)
    assert (found.rps, found.p95_duration_ms) == (0, 0)


def test_memory_is_bounded_over_all_histories() -> None:
    random = Random(2)
    limit = 200_000
    monitor = EmbeddedMonitor(fine_seconds=60, max_bytes=limit)
    for number in range(40):
        instruments = InferenceInstruments(None)
        for minute in range(15):
            at = START + number * 900 + minute * 60
            monitor.ingest(target(str(number)), at, instruments.text())
            for _ in range(50):
                instruments.observe("2xx", random.lognormvariate(-3, 1))
        monitor.drop(target(str(number)))

    # Those that ended first are gone, and the one that is scraped is whole.
    assert monitor.size < 1.2 * limit
    assert 2 < len(monitor) < 40
    assert ask(monitor, 39 * 900 + 840, 839).requests == pytest.approx(700, rel=0.01)


def test_a_single_history_that_is_too_large_loses_its_older_half() -> None:
    random = Random(4)
    monitor = EmbeddedMonitor(fine_seconds=60, max_bytes=40_000)
    instruments = InferenceInstruments(None)
    for minute in range(400):
        monitor.ingest(target(), START + minute * 60, instruments.text())
        for _ in range(50):
            instruments.observe("2xx", random.lognormvariate(-3, 1))

    assert monitor.size < 100_000
    assert ask(monitor, 399 * 60, 1800).requests == pytest.approx(1500, rel=0.01)


def test_version_3_of_prometheus_can_be_followed() -> None:
    monitor, instruments = EmbeddedMonitor(), InferenceInstruments(None)
    scrape(monitor, instruments, seconds=range(0, 122, 10), each=(("2xx", 0.01),) * 10)

    # Seven samples lie on a window of 60 s; version 3 leaves out the one on its start.
    assert ask(monitor, 120).requests == 60
    assert ask(monitor, 120).scrapes == 7
    monitor.prom3 = True
    assert ask(monitor, 120).scrapes == 6
    assert ask(monitor, 120).requests == 60
