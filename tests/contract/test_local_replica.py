"""What a replica of this machine says over its control socket is never believed unread."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, cast

import pytest
from aiohttp import web

from server.engines import local_replica
from server.engines.base import EngineError
from server.engines.control import ControlSocket
from server.engines.local_replica import LocalReplica
from server.sandbox.launch import Sandbox
from server.sandbox.levels import Level
from server.settings import Settings
from tests.support.confined import script
from tests.support.hostile import MOST_BYTES, Script, on_control
from tests.support.silent_child import Silent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Answering = Callable[[Any], Awaitable[LocalReplica]]


@pytest.fixture
async def replica_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Answering]:
    monkeypatch.setattr(local_replica, "_EXIT_SECONDS", 0.05)
    opened: list[tuple[web.AppRunner, LocalReplica]] = []

    async def make(answer: Any) -> LocalReplica:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "control")).start()
        control = ControlSocket(str(tmp_path / "control"))
        settings = Settings(data_dir=tmp_path, load_seconds=0.3)
        replica = LocalReplica(cast("Any", None), 1, cast("Any", Silent()), control, settings)
        opened.append((runner, replica))
        return replica

    yield make
    for runner, replica in opened:
        await replica.stop()
        await runner.cleanup()


@pytest.mark.parametrize(
    "body", [b"[]", b"\xff", b"[" * 100_000, b'{"loaded": 1}', b"null", b"", b"{" * 10]
)
async def test_a_state_that_is_none_is_as_good_as_silence(
    replica_that: Answering, body: bytes
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body)

    replica = await replica_that(answer)

    with pytest.raises(EngineError, match="load_timeout"):
        await replica.ready()
    await replica.retreat()


async def test_one_that_takes_long_to_load_is_asked_ever_less_often(
    replica_that: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[float] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/state":
            at.append(asyncio.get_running_loop().time())
        return web.json_response({"loaded": len(at) > 8})

    replica = await replica_that(answer)
    replica._settings = Settings(load_seconds=50)
    monkeypatch.setattr(local_replica, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(local_replica, "_POLL_SHARE", 1.0)
    await replica.ready()

    # Each pause is as long as all that was before it, up to the longest: whatever the machine does.
    for number in range(2, len(at)):
        assert at[number] - at[number - 1] >= min(0.5, at[number - 1] - at[0]) - 0.01


async def test_a_scrape_in_parts_is_read_to_its_end(
    replica_that: Answering,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):
            await response.write(b"a 1\n")
            await asyncio.sleep(0.01)
        return response

    assert await (await replica_that(answer)).scrape() == "a 1\n" * 3


async def test_a_scrape_without_an_end_is_cut_off(
    replica_that: Answering,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    with pytest.raises(EngineError, match="replica_silent"):
        await (await replica_that(answer)).scrape()


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        b"1;" + b"e" * 4000 + b"\r\nx\r\n",
        b"1\r\nx\r\n" * 500,
    ],
)
async def test_an_answer_without_an_end_is_cut_off_whatever_it_is_made_of(
    tmp_path: Path, endless: bytes
) -> None:
    begun = b"" if b"100" in endless else b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    script = Script(said=begun, endless=endless, reads=True, end="silence")
    path = str(tmp_path / "control")
    async with on_control(script, path) as hostile:
        # Not by the deadline: a minute of this would keep the service busy for a minute.
        with pytest.raises(EngineError, match="replica_silent") as caught:
            await ControlSocket(path).ask("GET", "/state", seconds=50)
        assert caught.value.evidence != "TimeoutError"
        assert hostile.most_written < MOST_BYTES


async def test_a_replica_sends_the_service_nowhere_else(
    replica_that: Answering,
) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"})

    with pytest.raises(EngineError, match="replica_silent"):
        await (await replica_that(answer)).scrape()
    assert asked == ["/metrics"]


async def test_a_replica_whose_session_is_closed_is_silent(
    replica_that: Answering,
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response()

    replica = await replica_that(answer)
    await replica.stop()

    with pytest.raises(EngineError, match="replica_silent"):
        await replica.scrape()


async def test_of_what_a_replica_has_said_the_last_short_failure_counts(tmp_path: Path) -> None:
    code = """
import json, sys
def say(code, **more):
    print(json.dumps({"event": "failed", "code": code, **more}))
say("onnx_invalid")
say("model_load_failed", params={"found": "x", "refused": True})
say("load_timeout", evidence="y" * 5000)
print("[]")
sys.exit(1)
"""
    child = await Sandbox(level=Level.LIMITS).start(script(tmp_path, code))
    control = ControlSocket(str(tmp_path / "control"))
    replica = LocalReplica(cast("Any", None), 1, child, control, Settings(data_dir=tmp_path))

    ended = await replica.ended()
    await replica.stop()

    assert (ended.code, ended.params, ended.permanent) == (
        "model_load_failed",
        {"found": "x"},
        True,
    )
    assert not ended.refused


async def test_the_last_words_of_a_crashed_replica_name_no_path(tmp_path: Path) -> None:
    code = (
        "import os,sys\n"
        "sys.stderr.write('cannot open \\x1b[31m/srv/secret/model.bin\\x1b[0m: gone\\n\\n')\n"
        "sys.stderr.flush(); os.kill(os.getpid(), 6)\n"
    )
    child = await Sandbox(level=Level.LIMITS).start(script(tmp_path, code))
    control = ControlSocket(str(tmp_path / "control"))
    replica = LocalReplica(cast("Any", None), 1, child, control, Settings(data_dir=tmp_path))

    ended = await replica.ended()
    await replica.stop()

    assert ended.code == "replica_ended"
    assert ended.params == {"reason": f"signal {signal.SIGABRT.value}"}
    assert ended.evidence == "cannot open … : gone"
