"""What the service reads of real processes that write as it pleases them."""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from server.sandbox.child import LEFT_OUT, LINE_BYTES, Child, _Lines

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(60)

WITHOUT_END = "import os\nwhile 1: os.write({to}, {what} * 65536)"


async def child(program: str, hear: Callable[[str], None] = lambda _line: None) -> Child:
    return Child(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LINE_BYTES,
        ),
        hear=hear,
    )


async def listen(to: Child) -> None:
    while await to.line() is not None:
        pass


@pytest.mark.parametrize("what", [b"\n", b"x"])
@pytest.mark.parametrize("to", [1, 2])
async def test_one_that_writes_without_end_keeps_nobody_waiting(to: int, what: bytes) -> None:
    flooding = await child(WITHOUT_END.format(to=to, what=what))
    listening = asyncio.create_task(listen(flooding))
    try:
        # Without a rest this loop would never get its turn, and the test would not end.
        for _ in range(50):
            await asyncio.sleep(0.01)
    finally:
        await flooding.kill()
    await listening


async def test_lines_that_are_there_already_leave_turns_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each takes a millisecond to be made sense of, as a clock says that only they move."""
    read = 0
    turns: list[int] = []

    class Hoard(asyncio.StreamReader):
        async def readline(self) -> bytes:
            nonlocal read
            read += 1
            return b"" if read > 1000 else b"a line"

    async def others() -> None:
        while True:
            turns.append(read)
            await asyncio.sleep(0)

    clock = SimpleNamespace(monotonic=lambda: read / 1000)
    monkeypatch.setattr("server.sandbox.child.time", clock)
    waiting = asyncio.create_task(others())
    lines = _Lines(Hoard())
    while await lines.next() is not None:
        pass
    waiting.cancel()

    assert read == 1001
    assert max(later - earlier for earlier, later in pairwise(turns)) < 20


@pytest.mark.parametrize(
    ("line", "read_at_least", "read_at_most"), [(b"x", 1500, 2000), (b"x" * 5000, 200, 300)]
)
async def test_of_too_many_lines_some_are_left_out_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, line: bytes, read_at_least: int, read_at_most: int
) -> None:
    clock = 0.0
    monkeypatch.setattr("server.sandbox.child._REST_SECONDS", 0.01)
    monkeypatch.setattr("server.sandbox.child.time", SimpleNamespace(monotonic=lambda: clock))
    stream = asyncio.StreamReader()
    stream.feed_data((line + b"\n") * (5_000_000 // len(line) if len(line) > 1 else 3000))
    lines, read = _Lines(stream), 0
    while (said := await lines.next()) != LEFT_OUT:
        assert said == line.decode()
        read += 1
    assert read_at_least < read < read_at_most
    clock += 60
    stream.feed_data(b"the last one\n")
    stream.feed_eof()

    assert [await lines.next(), await lines.next()] == ["the last one", None]


async def test_what_is_written_at_once_is_read_whole() -> None:
    talking = await child("import sys\nfor n in range(1500): print(n)\nsys.exit(3)")

    said = []
    while (line := await talking.line()) is not None:
        said.append(int(line))

    assert said == list(range(1500))
    assert await talking.wait() == 3


async def test_how_it_ended_is_heard_and_who_ended_it() -> None:
    heard: list[str] = []
    ended = await child("import sys; sys.exit(3)", heard.append)
    await ended.wait()
    by_us = await child("import time; time.sleep(60)", heard.append)
    await by_us.kill()
    by_itself = await child("import os; os.kill(os.getpid(), 9)", heard.append)
    await by_itself.wait()

    assert heard == ["(ended with exit code 3)", "(ended by the service)", "(ended by signal 9)"]
