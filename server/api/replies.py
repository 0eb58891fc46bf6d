"""Answers as JSON: orjson bytes, optional fields left out, times in ISO 8601 UTC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from multidict import CIMultiDict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

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
    """Serialise ``payload`` to JSON; datetimes as ISO 8601 UTC with ``Z``."""
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


def present(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value: optional ones are left out, never ``null``."""
    return {name: value for name, value in fields.items() if value is not None}


def iso(moment: datetime | None) -> str | None:
    """Write a moment as ISO 8601 in UTC with ``Z``; ``None`` stays ``None``."""
    if moment is None:
        return None
    text: str = orjson.dumps(moment, option=_OPTIONS).decode()
    return text[1:-1]
