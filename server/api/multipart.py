"""Streams the one file of an upload form, with limits on size, pace and everything around it."""

from __future__ import annotations

import logging
import re
from collections import deque
from typing import TYPE_CHECKING

from server.api.bodies import Pace, PacedBody, defer_continue
from server.api.form import Event, FormError, FormParser, PartHead, boundary_of, shown_name
from server.errors import InvalidRequestError, TooLargeError, UnsupportedTypeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp import web

__all__ = ["Pace", "UploadForm", "defer_continue", "form_boundary", "open_form"]

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# Boundaries, headers and other fields of the form, all together.
OVERHEAD_BYTES = 1024 * 1024
FIELD_BYTES = 1024


class UploadForm:
    """The form of one upload while it arrives.

    ``file_name`` is fit to be shown. ``model`` is final once :meth:`chunks` has ended, since the
    field may come after the file.
    """

    def __init__(self, body: _Body, max_bytes: int) -> None:
        self.file_name = ""
        self.model: str | None = None
        self.size_bytes = 0
        self._body = body
        self._max_bytes = max_bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the file in pieces of about 1 MiB.

        The file is whole only when the iteration ends without an error: ``TooLargeError``
        (``artifact_too_large``), ``InvalidRequestError`` (``file_empty``, ``file_part_repeated``,
        ``multipart_truncated``, ...), ``SlowRequestError`` (``body_too_slow``).
        """
        pieces: list[bytes] = []
        gathered = 0
        while isinstance(piece := await self._body.next(), bytes):
            self._body.file_bytes = self.size_bytes = self.size_bytes + len(piece)
            if self.size_bytes > self._max_bytes:
                raise _too_large(self._max_bytes)
            pieces.append(piece)
            gathered += len(piece)
            if gathered >= CHUNK_BYTES:
                chunk = b"".join(pieces)
                pieces.clear()
                gathered = 0
                # Nothing of the chunk stays here while the consumer has it.
                del piece
                yield chunk
                del chunk
        if pieces:
            yield b"".join(pieces)
        if not self.size_bytes:
            raise InvalidRequestError("file_empty")
        await self._skip_rest()

    async def find_file(self) -> None:
        """Read up to the first byte of the file."""
        while (event := await self._body.next()) is not None:
            if isinstance(event, PartHead) and event.name == "file":
                if not event.file_name:
                    raise InvalidRequestError("file_name_missing")
                self.file_name = shown_name(event.file_name)
                return
            await self._field(event)
        raise InvalidRequestError("file_part_missing")

    async def _skip_rest(self) -> None:
        while (event := await self._body.next()) is not None:
            if isinstance(event, PartHead) and event.name == "file":
                raise InvalidRequestError("file_part_repeated")
            await self._field(event)
        await self._body.drain()

    async def _field(self, event: Event) -> None:
        if not isinstance(event, PartHead) or event.name != "model":
            return
        if self.model is not None:
            raise InvalidRequestError("parameter_repeated", name="model")
        value = b""
        while isinstance(piece := await self._body.next(), bytes):
            value += piece
            if len(value) > FIELD_BYTES:
                break
        text = value.decode("utf-8", "replace")
        if not MODEL_NAME.fullmatch(text):
            if event.file_name:
                raise InvalidRequestError("model_name_is_file")
            raise InvalidRequestError("model_name_malformed", value=text)
        self.model = text


async def open_form(
    request: web.Request,
    max_bytes: int,
    pace: Pace | None = None,
    watch: Callable[[PacedBody], None] | None = None,
) -> UploadForm:
    """Check the request's headers and read its form up to the file.

    ``watch`` gets the body before any of it is waited for.

    Raises what :func:`form_boundary` raises, ``InvalidRequestError`` (``multipart_malformed``,
    ``multipart_truncated``, ``file_part_missing``, ``file_name_missing``, ...) and
    ``SlowRequestError``.
    """
    boundary = form_boundary(request, max_bytes)
    body = PacedBody(request, pace, CHUNK_BYTES)
    if watch is not None:
        watch(body)
    form = UploadForm(_Body(body, FormParser(boundary)), max_bytes)
    await form.find_file()
    return form


def form_boundary(request: web.Request, max_bytes: int) -> bytes:
    """Check an upload's headers and return its form's boundary.

    Raises ``UnsupportedTypeError`` (``content_encoding_unsupported``), ``InvalidRequestError``
    (``multipart_expected``, ``multipart_boundary_missing``), ``TooLargeError``
    (``artifact_too_large``) when the Content-Length says so.
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedTypeError("content_encoding_unsupported", found=encoding)
    content_type = request.headers.get("Content-Type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise InvalidRequestError("multipart_expected", found=kind or "-")
    boundary = boundary_of(content_type)
    if boundary is None:
        raise InvalidRequestError("multipart_boundary_missing")
    length = request.content_length
    if length is not None and length > max_bytes + OVERHEAD_BYTES:
        raise _too_large(max_bytes)
    return boundary


class _Body:
    """The events of a request's form."""

    def __init__(self, body: PacedBody, parser: FormParser) -> None:
        self.file_bytes = 0
        self._body = body
        self._parser = parser
        self._events: deque[Event] = deque()

    async def next(self) -> Event | None:
        """Return the next event of the form, or ``None`` after its closing boundary."""
        while not self._events:
            if self._parser.is_closed:
                return None
            data = await self._receive()
            if not data:
                raise InvalidRequestError(
                    "multipart_truncated" if self._body.received_bytes else "file_part_missing"
                )
            try:
                self._events.extend(self._parser.feed(data))
            except FormError as error:
                logger.info("malformed form: %s", error)
                raise InvalidRequestError("multipart_malformed") from None
        return self._events.popleft()

    async def drain(self) -> None:
        """Read what follows the form, so that the connection can be kept."""
        while await self._receive():
            pass

    async def _receive(self) -> bytes:
        # Everything received before has been handed out by now.
        if self._body.received_bytes - self.file_bytes > OVERHEAD_BYTES:
            raise TooLargeError("form_too_large", limit=OVERHEAD_BYTES)
        return await self._body.receive()


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError("artifact_too_large", limit_mb=f"{max_bytes / 1024**2:g}")
