"""The embedded monitor's history on a real disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metrics import persistence
from metrics.embedded import EmbeddedMonitor
from metrics.instruments import InferenceInstruments
from metrics.reading import Question, Reading, positive
from metrics.targets import Target
from server.store import history
from server.store.history import HistoryFile

START = 1_700_000_000.0


def target(replica: str = "0", run: str = "run") -> Target:
    return Target(run_id=run, model="m", environment="dev", replica=replica, version="1")


def lived(monitor: EmbeddedMonitor, of: Target, seconds: range) -> None:
    instruments = InferenceInstruments(None)
    for second in seconds:
        monitor.ingest(of, START + second, instruments.text())
        for _ in range(5):
            instruments.observe("2xx", 0.02)


def saved(file: HistoryFile) -> bool:
    return all(file.save(changes) for changes in file.unsaved())


def ask(monitor: EmbeddedMonitor, run: str = "run") -> Reading:
    return monitor.read(run, Question(seconds=90_000, quantiles=(0.95,)), START + 10_000)


Opened = Callable[[Path], tuple[EmbeddedMonitor, HistoryFile]]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Open a file for a monitor of its own; all of them are closed at the end."""
    files = []

    def open_file(path: Path) -> tuple[EmbeddedMonitor, HistoryFile]:
        monitor = EmbeddedMonitor()
        file = HistoryFile(monitor, path)
        files.append(file)
        file.open()
        return monitor, file

    yield open_file
    for file in files:
        file.close()


def test_a_restart_goes_on_from_what_was_saved(tmp_path: Path, opened: Opened) -> None:
    monitor, file = opened(tmp_path / "history.db")
    lived(monitor, target(), range(0, 4000, 10))
    assert saved(file)
    lived(monitor, target("1"), range(4000, 8000, 10))
    assert saved(file)
    expected = ask(monitor)
    # Not closed: as after a kill.
    again, _ = opened(tmp_path / "history.db")

    assert expected.requests == pytest.approx(3990, abs=10)
    assert ask(again) == expected


def test_a_deleted_run_is_deleted_from_the_disk_too(tmp_path: Path, opened: Opened) -> None:
    monitor, file = opened(tmp_path / "history.db")
    lived(monitor, target(), range(0, 100, 10))
    lived(monitor, target(run="other"), range(0, 100, 10))
    saved(file)
    monitor.forget("run")
    saved(file)
    file.close()
    again, _ = opened(tmp_path / "history.db")

    assert ask(again).is_empty
    assert not ask(again, "other").is_empty


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(99)])
def test_a_damaged_file_is_set_aside_and_the_service_starts(
    tmp_path: Path, opened: Opened, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.db"
    path.write_bytes(damage)
    monitor, file = opened(path)
    lived(monitor, target(), range(0, 100, 10))
    assert saved(file)
    file.close()

    assert "set aside" in caplog.text
    assert (tmp_path / "history.db.damaged").read_bytes() == damage
    assert not ask(opened(path)[0]).is_empty


def test_history_of_another_layout_is_not_used(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.db"
    monitor, file = opened(path)
    lived(monitor, target(), range(0, 100, 10))
    saved(file)
    file.close()
    monkeypatch.setattr(history, "LAYOUT_DIGEST", "other")

    assert ask(opened(path)[0]).is_empty
    assert persistence.LAYOUT_DIGEST != "other"


def test_one_damaged_target_does_not_take_the_others_with_it(
    tmp_path: Path, opened: Opened
) -> None:
    path = tmp_path / "history.db"
    monitor, file = opened(path)
    lived(monitor, target(), range(0, 100, 10))
    lived(monitor, target(run="other"), range(0, 100, 10))
    saved(file)
    file.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE heads SET data = x'00' WHERE target = ?", (target().id,))
    connection.close()
    again, _ = opened(path)

    assert ask(again).is_empty
    assert not ask(again, "other").is_empty


def test_a_rotten_block_is_left_out_and_deleted(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "history.db"
    monitor, file = opened(path)
    lived(monitor, target(), range(0, 9000, 10))
    saved(file)
    file.close()
    with sqlite3.connect(path) as connection:
        number = connection.execute(
            "UPDATE blocks SET data = zeroblob(length(data)) WHERE start = (SELECT min(start) FROM blocks)"
        ).rowcount
        connection.execute("INSERT INTO heads VALUES ('rotten', x'00')")
    connection.close()
    again, file = opened(path)

    # Its windows begin later, and nothing fails.
    assert 0 < positive(ask(again).requests) <= positive(ask(monitor).requests)
    assert again.opened.rotten == number + 1
    assert saved(file)
    file.close()
    assert opened(path)[0].opened.rotten == 0


def test_what_a_full_disk_refused_is_saved_later(
    tmp_path: Path,
    opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor, file = opened(tmp_path / "history.db")
    lived(monitor, target(), range(0, 4000, 10))
    [changes] = file.unsaved()
    with monkeypatch.context() as full:
        full.setattr(history, "_write", _refuse)
        assert not file.save(changes)
    assert "disk is full" in caplog.text
    file.not_saved(changes)
    assert saved(file)
    file.close()

    assert ask(opened(tmp_path / "history.db")[0]) == ask(monitor)


def _refuse(connection: sqlite3.Connection, *_changes: object) -> None:
    connection.execute("DELETE FROM heads")
    raise sqlite3.OperationalError("database or disk is full")
