"""Answers as JSON: orjson bytes, optional fields left out, times in ISO 8601 UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from multidict import CIMultiDict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

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


class Remembered:
    """Serialised answers of frozen records: polls of an unchanged one cost one look-up.

    An answer is remembered for as long as its record is the very same object.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._answers: dict[Hashable, tuple[object, bytes]] = {}

    def reply(self, key: Hashable, record: object, make: Callable[[], Any]) -> web.Response:
        """Answer what ``make`` returns for ``record``; ``key`` holds all else that it depends on."""
        known = self._answers.get(key)
        if known is None or known[0] is not record:
            known = (record, dumps(make()))
            if len(self._answers) >= self._limit:
                self._answers.clear()
            self._answers[key] = known
        return reply(known[1])


def present(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value: optional ones are left out, never ``null``."""
    return {name: value for name, value in fields.items() if value is not None}


def iso(moment: datetime | None) -> str | None:
    """Write a moment as ISO 8601 in UTC with ``Z``; ``None`` stays ``None``."""
    if moment is None:
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return orjson.dumps(aware.astimezone(UTC), option=_OPTIONS).decode()[1:-1]
