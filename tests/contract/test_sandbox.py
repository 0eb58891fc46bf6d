from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest
from aiohttp import web

from server.engines import local
from server.engines.base import EngineError
from server.engines.local import LocalReplica
from server.sandbox import launch
from server.sandbox.launch import Launch, Sandbox, base_prefix, base_python
from server.settings import Settings
from tests.support.needs import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Answering = Callable[[Any], Awaitable[LocalReplica]]

_TRIES = """
import errno, json, os, socket, sys
readonly, writable = sys.argv[1:]

def ends(do, *given):
    try:
        do(*given)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def write(path):
    with open(path, "r+b" if os.path.exists(path) else "wb") as file:
        file.write(b"x")

def connect():
    socket.create_connection(("127.0.0.1", 9), timeout=1).close()

def mounted(*given):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
    if libc.mount(*given) != 0:
        raise OSError(ctypes.get_errno(), "mount")

def unshared():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")

REMOUNT_BIND = 0x20 | 0x1000
print(json.dumps({
    "write": ends(write, readonly),
    "remount": ends(mounted, None, readonly.encode(), None, REMOUNT_BIND, None),
    "write after remount": ends(write, readonly),
    "mount": ends(mounted, b"none", b"/tmp", b"tmpfs", 0, None),
    "new namespace": ends(unshared),
    "switches": [
        path for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/comm")
        if os.access(path, os.W_OK)
    ],
    "own": ends(write, writable + "/file"),
    "tmp": ends(write, "/tmp/file"),
    "root": ends(write, "/file"),
    "dev": ends(write, "/dev/file"),
    "tmp bytes": os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize,
    "network": ends(connect),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "processes": [name for name in os.listdir("/proc") if name.isdigit()],
    "etc": os.path.exists("/etc/passwd"),
}))
"""


@pytest.fixture(scope="module")
def confining() -> Sandbox:
    need("bwrap", "bubblewrap")
    sandbox = asyncio.run(Sandbox.probe())
    if not sandbox.confines:
        pytest.skip("bubblewrap does not work on this machine")
    return sandbox


def _python(code: str, *arguments: object, **given: Any) -> Launch:
    return Launch(
        argv=[base_python(), "-I", "-S", "-c", code, *map(str, arguments)],
        read_only=[base_prefix(), *given.pop("read_only", ())],
        **given,
    )


async def _said(sandbox: Sandbox, what: Launch) -> dict[str, Any]:
    child = await sandbox.start(what)
    line = await child.line()
    code = await child.wait()
    assert code == 0, list(child.log)
    said: dict[str, Any] = json.loads(line or "{}")
    return said


async def test_a_confined_child_keeps_no_right_over_the_machine(
    confining: Sandbox, tmp_path: Path
) -> None:
    readonly, writable = tmp_path / "readonly", tmp_path / "writable"
    readonly.write_bytes(b"kept")
    writable.mkdir()

    said = await _said(
        confining,
        _python(_TRIES, readonly, writable, read_only=[readonly], writable=[writable]),
    )

    assert said["write"] == said["write after remount"] == "EROFS"
    assert said["remount"] == said["mount"] == "EPERM"
    assert said["new namespace"] != "done"
    assert said["switches"] == []
    assert readonly.read_bytes() == b"kept"
    assert said["own"] == said["tmp"] == "done"
    assert said["root"] == said["dev"] == "EROFS"
    assert said["tmp bytes"] <= 1024**3
    assert said["network"] != "done"
    assert said["interfaces"] == ["lo"]
    assert len(said["processes"]) <= 3
    assert not said["etc"]


@pytest.mark.parametrize("is_confined", [True, False])
async def test_a_file_that_grows_over_its_limit_is_cut(
    confining: Sandbox, tmp_path: Path, *, is_confined: bool
) -> None:
    need("prlimit", "util-linux")
    sandbox = confining if is_confined else Sandbox(bubblewrap=None)
    code = (
        "import json,sys\n"
        "try:\n  open(sys.argv[1] + '/big', 'wb', 0).truncate(5000)\n"
        "except OSError as error: print(json.dumps({'errno': error.errno}))\n"
    )

    said = await _said(sandbox, _python(code, tmp_path, writable=[tmp_path], file_bytes=4096))

    assert said == {"errno": 27}


async def test_a_bubblewrap_that_leaves_capabilities_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shim = tmp_path / "bwrap"
    shim.write_text(
        '#!/bin/sh\n[ "$1" = --help ] && exit 0\n'
        'while [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n',
        encoding="utf-8",
    )
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    sandbox = await Sandbox.probe()

    assert sandbox.name == "none"


async def test_a_child_whose_parent_died_first_never_runs_its_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch.os, "getpid", lambda: 1)

    child = await Sandbox(bubblewrap=None).start(_python("print('ran')"))

    assert await child.line() is None
    assert await child.wait() != 0


class _Silent:
    """A child without a word, for replicas of which only the control socket counts."""

    log = ()

    def __init__(self) -> None:
        self._end = asyncio.Event()

    async def line(self) -> None:
        await self._end.wait()

    async def wait(self) -> int:
        return 0

    async def kill(self) -> None:
        self._end.set()


@pytest.fixture
async def replica_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Answering]:
    monkeypatch.setattr(local, "_EXIT_SECONDS", 0.05)
    opened: list[tuple[web.AppRunner, LocalReplica]] = []

    async def make(answer: Any) -> LocalReplica:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "control")).start()
        session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "control")))
        settings = Settings(data_dir=tmp_path, load_seconds=0.3)
        replica = LocalReplica(cast("Any", None), 1, cast("Any", _Silent()), session, settings)
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


async def test_the_last_words_of_a_crashed_replica_name_no_path(tmp_path: Path) -> None:
    code = (
        "import os,sys\n"
        "sys.stderr.write('cannot open \\x1b[31m/srv/secret/model.bin\\x1b[0m: gone\\n\\n')\n"
        "sys.stderr.flush(); os.kill(os.getpid(), 6)\n"
    )
    child = await Sandbox(bubblewrap=None).start(_python(code))
    session = aiohttp.ClientSession()
    settings = Settings(data_dir=tmp_path)
    replica = LocalReplica(cast("Any", None), 1, child, session, settings)

    ended = await replica.ended()
    await replica.stop()

    assert ended.code == "replica_ended"
    assert ended.params == {"reason": f"signal {signal.SIGABRT.value}"}
    assert ended.evidence == "cannot open … : gone"


async def test_a_machine_with_lower_limits_than_ours_starts_children_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _limit: (64, 128))
    child = await Sandbox(bubblewrap=None).start(Launch(argv=["/bin/sh", "-c", "ulimit -n"]))
    assert await child.line() == "128"
    assert await child.wait() == 0
