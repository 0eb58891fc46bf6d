"""Upload over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server import keys
from server.api.callers import ensure_owner
from server.api.multipart import form_boundary, open_form
from server.api.replies import reply
from server.api.sessions import STORAGE
from server.errors import (
    BusyError,
    PersephoneError,
    StorageFullError,
    TooLargeError,
    UnsupportedTypeError,
)
from server.logs import run_id_var

if TYPE_CHECKING:
    from aiohttp import web

    from server.api.bodies import PacedBody

# The first that fits.
_RESULTS = (
    (UnsupportedTypeError, "unsupported"),
    (TooLargeError, "too_large"),
    (StorageFullError, "storage_full"),
    (BusyError, "over_quota"),
    (ConnectionError, "aborted"),
    (PersephoneError, "invalid"),
)


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
    return next((result for kind, result in _RESULTS if isinstance(error, kind)), "failed")


async def _receive(request: web.Request) -> web.Response:
    settings, usage = request.app[keys.SETTINGS], request.app[keys.USAGE]
    owner = await ensure_owner(request)
    # What its head alone refuses shall take nobody's place.
    form_boundary(request, settings.max_upload_bytes)
    async with usage.uploading(owner, request.content_length or 0) as admission:

        def watch(body: PacedBody) -> None:
            admission.place.arrival = body

        form = await open_form(request, settings.max_upload_bytes, watch=watch)
        run = await request.app[keys.UPLOAD].receive(
            usage.counted(admission, form.chunks()),
            file_name=form.file_name,
            owner=owner,
            model=lambda: form.model,
            begin=lambda: request.app[STORAGE].begin(request),
        )
    run_id_var.set(run.run_id)
    return reply({"runId": run.run_id, "model": run.model, "sha256": run.digest})
