"""Whatever a model makes of its process, the service stays what it is: nothing raised, nothing held."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import orjson
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from server.engines import local_replica
from server.engines.base import EngineError
from server.engines.control import ControlSocket
from server.engines.local_replica import LocalReplica
from server.errors import PersephoneError, StepFailedError
from server.messages import MAX_LENGTH, Messages
from server.pipeline.endings import failure_of, last_event, report_in, seconds_in
from server.pipeline.passport import read_passport
from server.sandbox.child import Child
from server.sandbox.events import Events, read_text
from server.settings import Settings
from server.store.run_logs import RunLogs
from tests.support.fuzzing import SECONDS, examples
from tests.support.gateway import INFER, Front, in_front_of
from tests.support.hostile import MOST_BYTES, Script, on_control, on_tcp, scripts, writings
from tests.support.silent_child import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

pytestmark = pytest.mark.timeout(SECONDS)

MESSAGES = Messages()
# A model's own status comes through; these are ours, and each names a cause.
OUR_CODES = {"replica_absent", "replica_broke_off", "prediction_timed_out_at_gateway"}
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
ENOUGH = 1024 * 1024
LARGE_BODY = b"x" * (512 * 1024)


@pytest.fixture(scope="module", autouse=True)
def short_deadlines() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_replica, "_CALL_SECONDS", 0.1)
        patch.setattr(local_replica, "_RETREAT_SECONDS", 0.1)
        patch.setattr(local_replica, "_EXIT_SECONDS", 0.05)
        patch.setattr("server.api.gateway._GRACE_SECONDS", 0.0)
        yield


def run(work: Coroutine[Any, Any, None]) -> None:
    """Do something on the service's own kind of event loop; nobody looks after what it leaves."""
    failures: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, what: failures.append(what))
        await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watched())
    assert failures == []


def assert_told(error: PersephoneError) -> None:
    """It can be written into the database and shown to people."""
    orjson.dumps(error.params)
    for language in ("ru", "en"):
        said = MESSAGES.render(error.code, error.params, language)
        assert 0 < len(said) <= MAX_LENGTH
        orjson.dumps(said)
    evidence = error.evidence if isinstance(error, StepFailedError) else ""
    orjson.dumps(evidence)


# ── the control socket


@examples(25)
@given(scripts)
def test_a_control_socket_may_say_anything(script: Script) -> None:
    run(_ask_everything(script))


async def _ask_everything(script: Script) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/control"
        settings = Settings(
            data_dir=Path(folder),
            load_seconds=0.1,
            smoke_seconds=0.1,
            predict_seconds=0.01,
            drain_seconds=0.01,
        )
        control = ControlSocket(path)
        replica = LocalReplica(cast("Any", None), 1, cast("Any", Silent()), control, settings)
        asked: list[Callable[[], Coroutine[Any, Any, object]]] = [
            *(replica.ready, replica.admit, replica.probe, replica.scrape, replica.retreat),
            *(replica.drain, lambda: replica.tell({})),
        ]
        async with on_control(script, path) as hostile:
            for outcome in await asyncio.gather(*(ask() for ask in asked), return_exceptions=True):
                if isinstance(outcome, EngineError):
                    assert_told(outcome)
                else:
                    assert not isinstance(outcome, BaseException), outcome
            await replica.stop()
            assert hostile.most_written < MOST_BYTES
        assert not control._open


# ── predictions, through the gateway


@examples(30)
@given(scripts, st.booleans())
def test_a_prediction_may_be_answered_by_anything(script: Script, is_large: bool) -> None:
    with _Records() as records:
        run(_predict(script, LARGE_BODY if is_large else b"{}"))
    assert records.worst() < logging.ERROR, records.seen


class _Records(logging.Handler):
    """Everything that the service logs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)

    def worst(self) -> int:
        return max((record.levelno for record in self.seen), default=0)

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_exc: object) -> None:
        logging.getLogger().removeHandler(self)


async def _predict(script: Script, body: bytes) -> None:
    settings = Settings(predict_seconds=0.1)
    async with on_tcp(script) as (_hostile, port), in_front_of(port, settings) as front:
        answers = [_answered(front, script, body) for _ in range(2)]
        neighbours = [front.client.get(front.url("/sd")) for _ in range(3)]
        _, *others = await asyncio.gather(asyncio.gather(*answers), *neighbours)
        assert [other.status for other in others] == [200] * len(others)
        # The second time, on whatever connection was kept.
        await _answered(front, script, b"{}")


async def _answered(front: Front, script: Script, body: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    try:
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        line = (await reader.readline()).split()
        assert line[0] == b"HTTP/1.1"
        headers = await reader.readuntil(b"\r\n\r\n")
        assert b"set-cookie" not in headers.lower()
        assert b"location" not in headers.lower()
        status = int(line[1])
        if b"x-persephone" in headers.lower() or status in {503, 504}:
            said = json.loads(await _body(reader, headers))
            assert said["code"] in OUR_CODES
        else:
            assert str(status).encode() in script.said
            await _taken(reader)
    finally:
        writer.transport.abort()


async def _body(reader: asyncio.StreamReader, headers: bytes) -> bytes:
    length = headers.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return await reader.readexactly(int(length))


async def _taken(reader: asyncio.StreamReader) -> None:
    """Take of a body as much as there is, or as anybody would; one without an end is the caller's."""
    taken = 0
    while taken < ENOUGH:
        try:
            async with asyncio.timeout(0.3):
                part = await reader.read(65536)
        except (TimeoutError, ConnectionError):
            return
        if not part:
            return
        taken += len(part)


# ── stdout and stderr


async def _child(out: Path, error: Path, hear: Callable[[str], None]) -> Child:
    return Child(
        await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", 'cat "$1"; cat "$2" >&2; exit 3', "sh", str(out), str(error)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=64 * 1024,
        ),
        hear=hear,
    )


@examples(10)
@given(writings, writings)
def test_a_process_may_write_anything(out: bytes, error: bytes) -> None:
    run(_read_everything(out, error))


async def _read_everything(out: bytes, error: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        said, logged = Path(folder) / "out", Path(folder) / "error"
        said.write_bytes(out)
        logged.write_bytes(error)
        logs = RunLogs(Path(folder) / "logs", lambda _run: True)

        async def child() -> Child:
            return await _child(said, logged, logs.writer("r1", "prod/1/0"))

        await _serve_with(await child())
        await _prove_with(await child())
        await _inspect_with(await child())
        lines = await logs.tail("r1")
        assert lines
        for line in lines:
            orjson.dumps(line.text)
            assert "/etc/passwd" not in line.text
            assert not any(map(_is_control, line.text)), ascii(line.text)
        await logs.close()


def _is_control(letter: str) -> bool:
    """Whether a reader's terminal or page may take it for more than a letter."""
    if unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"}:
        return letter != "\t"
    # These turn the direction of the text around.
    return unicodedata.bidirectional(letter) in TURNS


async def _serve_with(child: Child) -> None:
    control = ControlSocket("/nonexistent")
    replica = LocalReplica(cast("Any", None), 1, cast("Any", child), control, Settings())
    ended = await replica.ended()
    await replica.stop()
    assert not ended.refused
    assert_told(ended)


async def _prove_with(child: Child) -> None:
    """Read events as a preparation does."""
    events = Events(child)
    while (event := await events.next()) is not None:
        orjson.dumps(event)
        for read in (read_text, read_passport, seconds_in):
            try:
                orjson.dumps(read(event))
            except StepFailedError as error:
                assert_told(error)
            except ValueError:
                assert read is read_text
        assert_told(await failure_of(child, event))
    await child.kill()


async def _inspect_with(child: Child) -> None:
    try:
        report_in(await last_event(child))
    except StepFailedError as error:
        assert_told(error)
    await child.kill()
