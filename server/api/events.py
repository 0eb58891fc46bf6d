"""The timeline of a run over HTTP: as JSON, and as server-sent events that go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from server import __version__, keys
from server.api import parameters
from server.api.edge import language_of
from server.api.prepare import rendered
from server.api.replies import dumps, present, tag_of, tagged_beforehand
from server.api.runs import run_in_path
from server.api.streams import STREAMS
from server.messages import MAX_LENGTH
from server.records import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from server.records import Event, Run

MEDIA_TYPE = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"
MOST = 10**18 - 1

LONGEST_SECONDS = 3600.0
"""After this a stream ends; a browser comes back by itself, and misses nothing."""

_PAGE = 100
_AT_ONCE = 50
_RETRY = b"retry: 3000\n\n"
_END = b"event: end\ndata: {}\n\n"
_GAP = b'event: gap\ndata: {"after":%d}\n\n'


async def events(request: web.Request) -> web.StreamResponse:
    """``GET /runs/{runId}/events``: what happened to a run after an event, or all of it."""
    after = _after(request)
    run = await run_in_path(request)
    if wants(request, MEDIA_TYPE):
        stream = _EventStream(request, run, after)
        return await request.app[STREAMS].answer(
            request, run.owner, f"{MEDIA_TYPE}; charset=utf-8", stream
        )
    log = request.app[keys.STORE].events
    # Before the look: whoever asks for what came after it must not miss what comes meanwhile.
    newest = log.newest(run.run_id)

    async def made() -> bytes:
        found = await log.page(run.run_id, after)
        told = await all_shown(request, [each for each in found if each.sequence <= newest])
        is_cut = after > 0 and await log.is_cut(run.run_id, after)
        gap = {"gap": True} if is_cut else {}
        return dumps({"runId": run.run_id, "events": told, "sequence": newest, **gap})

    # Numbers are never given twice; only another release tells the same events otherwise.
    facts = (run.run_id, newest, after, language_of(request), __version__)
    tag = tag_of(repr(facts).encode())
    return await tagged_beforehand(request, tag, made, vary="Accept, Last-Event-ID")


def wants(request: web.Request, media_type: str) -> bool:
    """Whether ``Accept`` names a media type that is never answered unasked."""
    return media_type in request.headers.get("Accept", "").lower()


def _after(request: web.Request) -> int:
    # A browser that reconnects asks at the same address again.
    header = request.headers.get(LAST_EVENT_ID)
    if header:
        return parameters.checked_count(header, LAST_EVENT_ID, MOST)
    return parameters.count(request, "after", MOST) or 0


def shown(request: web.Request, event: Event) -> dict[str, Any]:
    """Return an event as JSON, its sentence in the reader's language."""
    params, reason = event.params, event.reason
    message = rendered(request, Text(code=event.code, params=params))
    why = rendered(request, reason)
    return present(
        sequence=event.sequence,
        at=event.at,
        code=event.code,
        message=message if why is None else f"{message} {why}"[:MAX_LENGTH],
        by=event.by.kind,
        tokenId=event.by.token_id,
        step=params.get("step"),
        attempt=params.get("attempt"),
        environment=params.get("environment"),
        version=None if "version" not in params else str(params["version"]),
        gpu=params.get("gpu"),
        reason=None if reason is None else reason.code,
    )


async def all_shown(request: web.Request, events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return events as JSON; between some of them others have their turn."""
    told = []
    for number, event in enumerate(events, 1):
        told.append(shown(request, event))
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return told


class _EventStream:
    heartbeat = b": still here\n\n"
    longest_seconds = LONGEST_SECONDS

    def __init__(self, request: web.Request, run: Run, after: int) -> None:
        self._request = request
        self._store = request.app[keys.STORE]
        self._run_id = run.run_id
        self._last = after
        self._greeting: bytes = _RETRY
        self._is_over = False

    async def piece(self) -> bytes | None:
        if self._greeting:
            greeting, self._greeting = self._greeting, b""
            is_cut = self._last > 0 and await self._store.events.is_cut(self._run_id, self._last)
            return greeting + (_GAP % self._last if is_cut else b"")
        if self._is_over:
            return None
        log = self._store.events
        if log.newest(self._run_id) <= self._last:
            found = []
        else:
            found = await log.page(self._run_id, self._last, _PAGE)
        if found:
            self._last = found[-1].sequence
        elif self._run_id not in self._store.runs:
            self._is_over = True
            return _END
        return b"".join(
            b"id: %d\ndata: %b\n\n" % (event.sequence, dumps(shown(self._request, event)))
            for event in found
        )

    async def news(self) -> None:
        await self._store.events.news(self._run_id, self._last)
