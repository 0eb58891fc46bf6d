"""Which replicas can be read, and how often they could."""

from __future__ import annotations

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.reading import Question
from metrics.targets import Target

START = 1_700_000_000.0


def target(replica: str, *, environment: str = "dev") -> Target:
    return Target(
        run_id="run", model="model", environment=environment, replica=replica, version="1"
    )


def test_who_cannot_be_read_is_known_by_name() -> None:
    monitor, instruments = EmbeddedMonitor(gap_seconds=15), InferenceInstruments(None)
    quiet, silent, broken = target("0"), target("1"), target("2", environment="prod")
    own = target("gateway")
    for second in range(0, 60, 2):
        monitor.ingest(quiet, START + second, instruments.text())
        monitor.ingest(silent, START + second, instruments.text() if second < 40 else None)
        monitor.ingest(broken, START + second, "no metrics at all")
        monitor.ingest(own, START + second, None)

    assert monitor.reach("run", None, START + 50) == (2, (broken,))
    assert monitor.reach("run", None, START + 58) == (1, (silent, broken))
    assert monitor.reach("run", "dev", START + 58) == (1, (silent,))
    assert monitor.reach("other", None, START + 58) == (0, ())
    monitor.drop(silent)
    assert monitor.reach("run", "dev", START + 58) == (1, ())


def test_scrapes_are_counted_together_whoever_was_scraped_how_often() -> None:
    monitor, text = EmbeddedMonitor(), InferenceInstruments(None).text()
    for second in range(0, 600, 2):
        monitor.ingest(target("0"), START + second, text)
    # One that crashed soon does not weigh like one that was there all the time.
    for second in range(0, 20, 2):
        monitor.ingest(target("1"), START + second, None)

    question = Question(seconds=600, health=True)
    assert monitor.read("run", question, START + 600).up == pytest.approx(300 / 310)
