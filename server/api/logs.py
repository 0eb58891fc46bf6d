"""What the processes of a run wrote, over HTTP: its last lines, and new ones as they come."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from aiohttp import web

from server import keys
from server.api import parameters
from server.api.events import wants
from server.api.replies import dumps, iso
from server.api.runs import run_in_path
from server.api.streams import STREAMS
from server.store.run_logs import MOST_LINES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from server.records import Run
    from server.store.run_logs import Follower, LogLine

LINES_TYPE = "application/x-ndjson"
TEXT_TYPE = "text/plain; charset=utf-8"


async def logs(request: web.Request) -> web.StreamResponse:
    """``GET /runs/{runId}/logs``: the last lines of a run's processes."""
    most = parameters.count(request, "lines", MOST_LINES)
    most = MOST_LINES if most is None else most
    follows = parameters.flag(request, "follow")
    run = await run_in_path(request)
    as_json = wants(request, LINES_TYPE)
    media_type, write = (LINES_TYPE, json_lines) if as_json else (TEXT_TYPE, text_lines)
    kept = request.app[keys.LOGS]
    if not follows:
        headers = {"Content-Type": media_type, "X-Content-Type-Options": "nosniff"}
        headers["Cache-Control"] = "no-store"
        return web.Response(body=write(await kept.tail(run.run_id, most)), headers=headers)
    async with kept.following(run.run_id, most) as follower:
        stream = _LogStream(request, run, follower, write)
        return await request.app[STREAMS].answer(request, run.owner, media_type, stream)


def text_lines(lines: Iterable[LogLine]) -> bytes:
    """Return lines for people: when, which process, what."""
    return "".join(f"{iso(line.at)} {line.source} | {line.text}\n" for line in lines).encode()


def json_lines(lines: Iterable[LogLine]) -> bytes:
    """Return lines for programs, an object each."""
    return b"".join(
        dumps({"at": line.at, "source": line.source, "line": line.text}) + b"\n" for line in lines
    )


class _LogStream:
    heartbeat = b""
    # It cannot be taken up where it ended.
    longest_seconds = math.inf

    def __init__(
        self,
        request: web.Request,
        run: Run,
        follower: Follower,
        write: Callable[[Iterable[LogLine]], bytes],
    ) -> None:
        self._runs = request.app[keys.STORE].runs
        self._run_id = run.run_id
        self._follower = follower
        self._write = write

    async def piece(self) -> bytes | None:
        lines = self._follower.take()
        if not lines and self._run_id not in self._runs:
            return None
        return self._write(lines)

    async def news(self) -> None:
        await self._follower.news()
