"""The last lines of a run's processes, on a real disk."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from server.store import run_logs
from server.store.run_logs import LogLine, RunLogs, cleaned_text
from tests.support.engines import until

if TYPE_CHECKING:
    from pathlib import Path

RUN = "a" * 32


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunLogs:
    monkeypatch.setattr(run_logs, "_PAUSE_SECONDS", 0.001)
    return RunLogs(tmp_path, lambda _run_id: True)


async def texts(logs: RunLogs, most: int = 1000) -> list[str]:
    return [line.text for line in await logs.tail(RUN, most)]


async def test_lines_of_all_processes_stand_in_their_order_and_outlive_a_kill(
    logs: RunLogs, tmp_path: Path
) -> None:
    load, replica = logs.writer(RUN, "load"), logs.writer(RUN, "prod/1/0")
    load("first")
    replica("second")
    load("third")
    await until(lambda: any(tmp_path.rglob("*.jsonl")))
    # Nobody has closed it.
    again = RunLogs(tmp_path, lambda _run_id: True)
    assert [(line.source, line.text) for line in await again.tail(RUN)] == [
        ("load", "first"),
        ("prod/1/0", "second"),
        ("load", "third"),
    ]
    assert await texts(again, 1) == ["third"]
    assert await texts(again, 0) == []


async def test_a_flood_takes_bounded_room_and_leaves_its_last_lines(
    logs: RunLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_logs, "FILE_BYTES", 20_000)
    write = logs.writer(RUN, "load")
    for round_ in range(10):
        for number in range(2500):
            write(f"line {round_} {number} " + "x" * 50)
        found = await texts(logs)
        assert found[-1].startswith(f"line {round_} 2499 ")
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.jsonl")]
    assert len(sizes) <= 2
    assert max(sizes) <= 20_000
    async with logs.following(RUN, 0) as follower:
        for number in range(2500):
            write(str(number))
        await follower.news()
        lines = [line.text for line in follower.take()]
    assert (lines[0], lines[1], lines[-1]) == ("(1501 lines are left out)", "1501", "2499")


async def test_who_follows_misses_nothing_and_gets_nothing_twice(logs: RunLogs) -> None:
    write = logs.writer(RUN, "load")
    found: list[str] = []

    async def follow() -> None:
        async with logs.following(RUN, 1000) as follower:
            while not found or found[-1] != "300":
                await follower.news()
                found.extend(line.text for line in follower.take())

    async def speak() -> None:
        for number in range(301):
            write(str(number))
            if number % 7 == 0:
                await asyncio.sleep(0)

    await asyncio.wait_for(asyncio.gather(follow(), speak()), 20)
    assert found == [str(number) for number in range(301)]


async def test_a_reader_that_stands_still_holds_a_bounded_number_of_lines(logs: RunLogs) -> None:
    write = logs.writer(RUN, "load")
    async with logs.following(RUN, 0) as follower:
        for number in range(3 * run_logs.MOST_LINES):
            write(str(number))
            if number % 500 == 0:
                await logs.tail(RUN)
        await logs.tail(RUN)
        lines = follower.take()
        assert len(lines) == run_logs.MOST_LINES
        assert lines[-1].text == str(3 * run_logs.MOST_LINES - 1)


async def test_a_disk_that_takes_nothing_stops_nobody(
    logs: RunLogs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / RUN).write_text("in the way")
    async with logs.following(RUN, 10) as follower:
        logs.writer(RUN, "load")("seen all the same")
        await asyncio.wait_for(follower.news(), 20)
        assert [line.text for line in follower.take()] == ["seen all the same"]
    logs.writer(RUN, "load")("more")
    await logs.tail(RUN)
    assert caplog.text.count("is not kept") == 1


async def test_what_is_being_written_when_the_service_ends_is_kept(
    logs: RunLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, is_cleaning = run_logs._clean, threading.Event()

    def slowly(lines: list[LogLine], left_out: int) -> list[LogLine]:
        is_cleaning.set()
        time.sleep(0.05)
        return clean(lines, left_out)

    monkeypatch.setattr(run_logs, "_clean", slowly)
    write = logs.writer(RUN, "load")
    write("first")
    assert await asyncio.to_thread(is_cleaning.wait, 5)
    write("second")
    await logs.close()
    assert await texts(logs) == ["first", "second"]


async def test_a_deleted_run_leaves_no_log(tmp_path: Path) -> None:
    known = {RUN}
    logs = RunLogs(tmp_path, known.__contains__)
    write = logs.writer(RUN, "load")
    write("something")
    await logs.tail(RUN)
    known.clear()
    await logs.forget(RUN)
    write("too late")
    assert await logs.tail(RUN) == []
    assert logs._logs == {}
    await logs.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (
            'File "/srv/persephone/data/environments/1/lib/torch/nn.py", line 3',
            'File "…/nn.py", line 3',
        ),
        ("cannot open /people/alice: denied", "cannot open …: denied"),
        ("\x1b[31mred\x1b[0m\x00 text\tand more", "red  text\tand more"),
        ("token psk_6f1f0cb5a3a1a0d4_abcdefgh", "token psk_…"),
        ("x" * 5000, "x" * 2000),
    ],
)
def test_a_line_tells_no_paths_and_no_secrets(said: str, kept: str) -> None:
    assert cleaned_text(said) == kept
