"""Answers as JSON: orjson bytes, optional fields left out, times in ISO 8601 UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from aiohttp import web
from multidict import CIMultiDict, istr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Mapping

_TAG = istr("ETag")
_KNOWN = istr("If-None-Match")

JSON_TYPE = "application/json; charset=utf-8"

# A datetime becomes 2026-01-31T12:00:00.123456Z; one without a zone is taken as UTC.
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC | orjson.OPT_NON_STR_KEYS

_HEADERS: CIMultiDict[str] = CIMultiDict(
    {
        "Content-Type": JSON_TYPE,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
)


def dumps(payload: Any) -> bytes:
    """Serialise ``payload`` to JSON; datetimes, which have to be in UTC, as ISO 8601 with ``Z``."""
    return orjson.dumps(payload, option=_OPTIONS)


def reply(
    payload: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer ``payload`` as JSON; bytes are taken as JSON that is already serialised."""
    body = payload if isinstance(payload, bytes) else orjson.dumps(payload, option=_OPTIONS)
    response = web.Response(body=body, status=status, headers=_HEADERS)
    if headers:
        response.headers.update(headers)
    return response


def tagged(request: web.Request, body: bytes) -> web.Response:
    """Answer JSON with its ``ETag``, or 304 without it to whoever has the same already."""
    return _unless_known(request, body, _headers_of(tag_of(body)))


async def tagged_beforehand(
    request: web.Request, tag: str, make: Callable[[], Awaitable[bytes]], *, vary: str
) -> web.Response:
    """Answer the JSON that ``make`` returns, or 304 without having made it.

    ``vary`` names a header on which the answer depends beside those that all depend on.
    """
    headers = _headers_of(tag)
    headers["Vary"] += f", {vary}"
    known = request.headers.get(_KNOWN)
    body = b"" if known is not None and is_known(known, tag) else await make()
    return _unless_known(request, body, headers)


def tag_of(body: bytes) -> str:
    """Return an entity tag: the same for the same bytes."""
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def _headers_of(tag: str) -> CIMultiDict[str]:
    # Browsers may keep it, each for its own user, but have to ask whether it is still the same.
    headers = CIMultiDict(_HEADERS)
    headers["Cache-Control"] = "private, no-cache"
    headers[_TAG] = tag
    headers["Vary"] = "Accept-Language, Authorization, Cookie"
    return headers


def _unless_known(request: web.Request, body: bytes, headers: CIMultiDict[str]) -> web.Response:
    if _KNOWN in request.headers and is_known(request.headers[_KNOWN], headers[_TAG]):
        response = web.Response(status=304, headers=headers)
        del response.headers["Content-Type"]
        return response
    return web.Response(body=body, headers=headers)


def is_known(named: str, tag: str) -> bool:
    """Whether ``If-None-Match`` names an entity tag (RFC 9110, 13.1.2: compared weakly)."""
    if named == tag:
        return True
    tags = (each.strip().removeprefix("W/") for each in named.split(","))
    return named.strip() == "*" or tag in tags


class Remembered:
    """Serialised answers of frozen records: polls of an unchanged one cost one look-up.

    An answer is remembered for as long as its record is the very same object and its ``sequence`` the
    same number. Who names its ``ETag`` is answered 304.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._answers: dict[Hashable, _Answer] = {}

    def reply(
        self,
        request: web.Request,
        key: Hashable,
        record: object,
        make: Callable[[], Any],
        sequence: int = 0,
    ) -> web.Response:
        """Answer what ``make`` returns for ``record``; ``key`` holds all else that it depends on."""
        known = self._answers.get(key)
        if known is None or known.record is not record or known.sequence != sequence:
            body = dumps(make())
            known = _Answer(record, sequence, body, _headers_of(tag_of(body)))
            if len(self._answers) >= self._limit:
                self._answers.clear()
            self._answers[key] = known
        return _unless_known(request, known.body, known.headers)


class _Answer(NamedTuple):
    record: object
    sequence: int
    body: bytes
    headers: CIMultiDict[str]


def present(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value: optional ones are left out, never ``null``."""
    return {name: value for name, value in fields.items() if value is not None}


def iso(moment: datetime | None) -> str | None:
    """Write a moment as ISO 8601 in UTC with ``Z``; ``None`` stays ``None``."""
    if moment is None:
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return orjson.dumps(aware.astimezone(UTC), option=_OPTIONS).decode()[1:-1]
