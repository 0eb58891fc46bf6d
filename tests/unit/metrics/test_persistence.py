from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.persistence import Changes, Place, Recorder
from metrics.reading import Question, Reading, positive
from metrics.targets import Target

if TYPE_CHECKING:
    from collections.abc import Callable

START = 1_700_000_000.0
REPLICA = Target(run_id="run", model="m", environment="dev", replica="0", version="1")


class Disk:
    """What a disk would hold."""

    def __init__(self) -> None:
        self.heads: dict[str, bytes] = {}
        self.blocks: dict[str, dict[Place, bytes]] = {}

    def save(self, recorder: Recorder) -> None:
        for changes in recorder.unsaved():
            self.write(recorder, changes)

    def write(self, recorder: Recorder, changes: Changes) -> None:
        for gone in changes.gone:
            self.heads.pop(gone, None)
            self.blocks.pop(gone, None)
        for one in recorder.write(changes):
            self.heads[one.target] = one.head
            mine = self.blocks.setdefault(one.target, {})
            for place in one.dropped:
                mine.pop(place, None)
            mine.update(one.blocks)

    def monitor(self) -> EmbeddedMonitor:
        monitor = EmbeddedMonitor()
        recorder = Recorder(monitor)
        for target, head in self.heads.items():
            assert recorder.resume(head, self.blocks[target])
        return monitor


def lived(monitors: tuple[EmbeddedMonitor, ...], seconds: range, *, seed: int = 1) -> None:
    """A fresh process of the replica: some requests every step, every fifth of them fails."""
    random, instruments = Random(seed), InferenceInstruments(None)
    for number, second in enumerate(seconds):
        text = None if number % 50 == 25 else instruments.text()
        for monitor in monitors:
            monitor.ingest(REPLICA, START + second, text)
        for place in range(random.randint(0, 10)):
            instruments.observe("2xx" if place % 5 else "5xx", random.lognormvariate(-4, 0.3))


def ask(monitor: EmbeddedMonitor, at: float, seconds: float) -> Reading:
    question = Question(seconds=seconds, quantiles=(0.95,), bound=0.02, health=True)
    return monitor.read("run", question, START + at)


def test_everything_is_known_after_a_restart_that_was_known_at_the_last_save() -> None:
    monitor, never_stopped, disk = EmbeddedMonitor(), EmbeddedMonitor(), Disk()
    recorder = Recorder(monitor)
    for begun in range(0, 30_000, 1500):
        lived((monitor, never_stopped), range(begun, begun + 1500, 25), seed=begun)
        disk.save(recorder)
    again = disk.monitor()
    lived((again, never_stopped), range(30_020, 31_000, 10))

    for seconds in (60, 300, 40_000):
        assert ask(again, 30_990, seconds) == ask(never_stopped, 30_990, seconds)
    for seconds in (3600, 21_600):
        mine, other = ask(again, 30_990, seconds), ask(never_stopped, 30_990, seconds)
        assert mine.requests == pytest.approx(other.requests, rel=0.01)
        assert mine.durations[0] == pytest.approx(other.durations[0], rel=0.01)
        assert mine.up == pytest.approx(other.up, rel=0.01)


def test_only_what_changed_is_to_be_written() -> None:
    monitor = EmbeddedMonitor()
    recorder = Recorder(monitor)
    lived((monitor,), range(0, 7200, 10))
    [first] = recorder.unsaved()
    assert list(recorder.unsaved()) == []
    monitor.ingest(REPLICA, START + 7201, InferenceInstruments(None).text())
    [second] = recorder.unsaved()

    assert len(first.targets[0].blocks) >= 4
    assert second.targets[0].blocks == {}
    assert len(recorder.write(second)[0].head) < 3000


def test_what_is_to_be_written_stays_as_it_was_while_the_monitor_goes_on() -> None:
    monitor, disk = EmbeddedMonitor(), Disk()
    recorder = Recorder(monitor)
    lived((monitor,), range(0, 7200, 10))
    expected = ask(monitor, 7190, 9000)
    [changes] = recorder.unsaved()
    lived((monitor,), range(7200, 9000, 10), seed=2)
    disk.write(recorder, changes)
    assert ask(disk.monitor(), 7190, 9000) == expected
    disk.save(recorder)

    assert ask(disk.monitor(), 8990, 9000) == ask(monitor, 8990, 9000)


def test_many_targets_are_said_some_at_a_time_and_forgotten_ones_meanwhile_do_not_come_back() -> (
    None
):
    monitor, disk = EmbeddedMonitor(), Disk()
    recorder = Recorder(monitor)
    text = InferenceInstruments(None).text()
    for number in range(250):
        monitor.ingest(replace(REPLICA, run_id=f"run{number}"), START, text)
    parts = recorder.unsaved()
    disk.write(recorder, next(parts))
    for number in range(250):
        monitor.forget(f"run{number}")
    for part in parts:
        disk.write(recorder, part)
    disk.save(recorder)

    assert disk.heads == disk.blocks == {}
    assert list(recorder.unsaved()) == []


def test_what_could_not_be_written_is_asked_for_again() -> None:
    monitor, disk = EmbeddedMonitor(), Disk()
    recorder = Recorder(monitor)
    lived((monitor,), range(0, 7200, 10))
    [failed] = recorder.unsaved()
    recorder.not_saved(failed)
    disk.save(recorder)

    assert ask(disk.monitor(), 7190, 9000) == ask(monitor, 7190, 9000)
    monitor.forget("run")
    [failed] = recorder.unsaved()
    assert failed.gone == {REPLICA.id}
    recorder.not_saved(failed)
    disk.save(recorder)
    assert disk.heads == disk.blocks == {}


def test_one_that_came_back_with_a_brief_history_takes_no_blocks_back() -> None:
    monitor = EmbeddedMonitor(max_targets=1)
    recorder = Recorder(monitor)
    lived((monitor,), range(0, 7200, 10))
    [failed] = recorder.unsaved()
    assert failed.targets[0].blocks
    monitor.forget("run")
    text = InferenceInstruments(None).text()
    monitor.ingest(replace(REPLICA, run_id="another"), START, text)
    monitor.ingest(REPLICA, START + 7300, text)
    assert monitor.crowd.brief == 1

    recorder.not_saved(failed)
    assert all(one.target != REPLICA or not one.blocks for one in next(recorder.unsaved()).targets)


def test_when_a_deployment_was_watched_outlives_a_restart() -> None:
    gateway = replace(REPLICA, replica="gateway")
    before, disk = EmbeddedMonitor(), Disk()
    for second in (0, 10, 20, 100, 110):
        before.ingest(gateway, START + second, None)
    disk.save(Recorder(before))
    after = disk.monitor()
    for second in (120, 200, 205):
        after.ingest(gateway, START + second, None)

    watched = Question(seconds=300, watched=True)
    assert after.read("run", watched, START + 205).watched == 20 + 20 + 5
    # Files of before it was noted.
    document = json.loads(disk.heads[gateway.id])
    del document["stretches"]
    disk.heads[gateway.id] = json.dumps(document).encode()
    assert disk.monitor().read("run", watched, START + 205).watched == 0


def test_old_blocks_are_deleted_as_they_expire() -> None:
    monitor, disk = EmbeddedMonitor(), Disk()
    recorder = Recorder(monitor)
    most = 0
    for hour in range(0, 120, 4):
        lived((monitor,), range(hour * 3600, hour * 3600 + 14_400, 300), seed=hour)
        disk.save(recorder)
        most = max(most, len(disk.blocks[REPLICA.id]))

    minutes = [start for tier, start in disk.blocks[REPLICA.id] if tier == 0]
    assert min(minutes) > (START + 100 * 3600) * 1000
    assert most < 60


def test_a_target_that_is_known_already_is_left_alone() -> None:
    before, after, disk = EmbeddedMonitor(), EmbeddedMonitor(), Disk()
    lived((before,), range(0, 100, 2))
    lived((after,), range(200, 300, 2))
    expected = ask(after, 299, 400)
    disk.save(Recorder(before))
    Recorder(after).resume(disk.heads[REPLICA.id], disk.blocks[REPLICA.id])

    assert ask(after, 299, 400) == expected


def test_a_target_that_never_answered_is_remembered_as_down() -> None:
    before, disk = EmbeddedMonitor(), Disk()
    before.ingest(REPLICA, START, None)
    disk.save(Recorder(before))

    assert ask(disk.monitor(), 1, 60).up == 0


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("mark", [5, 0, 9, 0.0]),
        ("mark", None),
        ("samples", -1),
        ("sampled_at", 9e15),
        ("load", float("inf")),
        ("target", {"run_id": "x"}),
        ("raw", "?"),
        ("raw", "eHg="),
        ("base", 5),
        ("stretches", 5),
        ("stretches", [[1]]),
        ("more", 1),
    ],
)
def test_a_damaged_head_is_not_used_and_breaks_nothing(part: str, value: object) -> None:
    before, after, disk = EmbeddedMonitor(), EmbeddedMonitor(), Disk()
    lived((before,), range(0, 20, 2))
    disk.save(Recorder(before))
    document = json.loads(disk.heads[REPLICA.id])
    document[part] = value

    assert not Recorder(after).resume(json.dumps(document).encode(), disk.blocks[REPLICA.id])
    assert len(after) == 0


def test_no_head_at_all_is_not_used_either() -> None:
    after = EmbeddedMonitor()

    assert not Recorder(after).resume(b"{", {})
    assert not Recorder(after).resume(b"[]", {})
    assert (len(after), after.opened.rotten) == (0, 2)


def _bit_flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :]


@pytest.mark.parametrize("rot", [_bit_flipped, lambda data: data[:-9], lambda _: b""])
@pytest.mark.parametrize("which", [slice(1), slice(3, 6), slice(-1, None), slice(None)])
def test_blocks_that_rotted_are_left_out_and_the_rest_is_read(
    which: slice, rot: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    before, disk = EmbeddedMonitor(), Disk()
    lived((before,), range(0, 50_000, 10))
    disk.save(Recorder(before))
    blocks = disk.blocks[REPLICA.id]
    for place in sorted(blocks)[which]:
        blocks[place] = rot(blocks[place])
    after = disk.monitor()
    lived((after, before), range(50_000, 50_100, 10), seed=2)

    # They are looked at when a window begins in them; none of that fails.
    for seconds in (60, 300, 7200, *range(20_000, 30_000, 1000), 40_000, 49_000, 86_400):
        found, expected = ask(after, 50_095, seconds), ask(before, 50_095, seconds)
        assert 0 <= positive(found.requests) <= 1.05 * positive(expected.requests)
        if which.stop == 6 or seconds == 60:
            assert found.requests == pytest.approx(expected.requests, rel=0.1)
    assert after.opened.rotten > 0
    assert caplog.text.count("cannot be read") == 1
    # What is left out is deleted, and a new start finds nothing rotten.
    disk.save(Recorder(after))
    again = disk.monitor()
    assert ask(again, 50_095, 86_400).requests == ask(after, 50_095, 86_400).requests
