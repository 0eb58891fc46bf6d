"""Upload over HTTP."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from server import keys
from server.api.multipart import open_form
from server.api.replies import reply
from server.api.sessions import ensure_owner
from server.errors import (
    PersephoneError,
    StorageFullError,
    TooLargeError,
    UnsupportedTypeError,
)

if TYPE_CHECKING:
    from aiohttp import web

    from server.settings import Settings

# Room that must stay free for the database and for everybody else.
_KEPT_BYTES = 256 * 1024 * 1024


async def upload(request: web.Request) -> web.Response:
    """``POST /upload``: take an artifact in and make a run of it."""
    instruments = request.app[keys.INSTRUMENTS]
    result = "aborted"
    try:
        answer = await _receive(request)
        result = "accepted"
    except Exception as error:
        result = _result(error)
        raise
    finally:
        instruments.upload(result)
    return answer


def _result(error: Exception) -> str:
    match error:
        case UnsupportedTypeError():
            return "unsupported"
        case TooLargeError():
            return "too_large"
        case StorageFullError():
            return "storage_full"
        case ConnectionError():
            return "aborted"
        case PersephoneError():
            return "invalid"
        case _:
            return "failed"


async def _receive(request: web.Request) -> web.Response:
    settings = request.app[keys.SETTINGS]
    owner = await ensure_owner(request)
    await asyncio.to_thread(_refuse_without_room, settings, request.content_length or 0)
    form = await open_form(request, settings.max_upload_bytes)
    run = await request.app[keys.UPLOAD].receive(
        form.chunks(), file_name=form.file_name, owner=owner, model=lambda: form.model
    )
    return reply({"runId": run.run_id, "model": run.model, "sha256": run.digest})


def _refuse_without_room(settings: Settings, expected_bytes: int) -> None:
    free = shutil.disk_usage(settings.data_dir).free
    if free < expected_bytes + _KEPT_BYTES:
        raise StorageFullError("disk_full")
