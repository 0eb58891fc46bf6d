from __future__ import annotations

import json

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.persistence import dump, load
from metrics.slo import summarise
from metrics.targets import Target

START = 1_700_000_000.0
REPLICA = Target(run_id="run", model="m", environment="dev", replica="0", version="1")


def lived(monitor: EmbeddedMonitor, seconds: range) -> None:
    """A fresh process of the replica: a request every two seconds, every fifth of them fails."""
    instruments = InferenceInstruments(None)
    for second in seconds:
        lost = second % 100 == 50
        monitor.ingest(REPLICA, START + second, None if lost else instruments.text())
        instruments.observe("5xx" if second % 10 == 0 else "2xx", 0.02)


def test_service_levels_outlive_a_restart_of_the_service() -> None:
    before, after, never_stopped = EmbeddedMonitor(), EmbeddedMonitor(), EmbeddedMonitor()
    lived(before, range(0, 1000, 2))
    assert load(after, dump(before)) == 1
    lived(after, range(1010, 1400, 2))
    lived(never_stopped, range(0, 1000, 2))
    lived(never_stopped, range(1010, 1400, 2))

    for window in (60, 1400):
        read = after.read("run", None, START + 1399, window)
        assert read == never_stopped.read("run", None, START + 1399, window)
    assert summarise(read).availability == pytest.approx(80, abs=0.5)


def test_a_restart_does_not_show_in_the_short_window_either() -> None:
    before, after = EmbeddedMonitor(), EmbeddedMonitor()
    lived(before, range(0, 1000, 2))
    load(after, dump(before))
    lived(after, range(1004, 1010, 2))

    assert 0 < (after.read("run", None, START + 1009).rps or 0) < 0.6


def test_a_target_that_is_known_already_is_left_alone() -> None:
    before, after = EmbeddedMonitor(), EmbeddedMonitor()
    lived(before, range(0, 100, 2))
    lived(after, range(200, 300, 2))
    expected = after.read("run", None, START + 299)
    load(after, dump(before))

    assert after.read("run", None, START + 299) == expected


def test_a_target_that_never_answered_is_remembered_as_down() -> None:
    before, after = EmbeddedMonitor(), EmbeddedMonitor()
    before.ingest(REPLICA, START, None)
    load(after, dump(before))

    assert after.read("run", None, START + 1).up == 0


@pytest.mark.parametrize("damage", ["", "[]", "null", "{", '{"layout":"x","lives":[]}'])
def test_what_cannot_be_read_is_not_used(damage: str) -> None:
    monitor = EmbeddedMonitor()

    assert load(monitor, damage.encode()) == 0
    assert len(monitor) == 0


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("probes", [0, 5, 2]),
        ("probes", None),
        ("last_at", "soon"),
        ("target", {"run_id": "x"}),
        ("samples", {"first_at": 1}),
        (
            "samples",
            {"first_at": 1, "last_at": 2, "count": 2, "first": [1], "grown": [], "last": []},
        ),
    ],
)
def test_one_damaged_entry_spoils_all_and_breaks_nothing(part: str, value: object) -> None:
    before, after = EmbeddedMonitor(), EmbeddedMonitor()
    lived(before, range(0, 20, 2))
    document = json.loads(dump(before))
    document["lives"][0][part] = value

    assert load(after, json.dumps(document).encode()) == 0
    assert len(after) == 0
