"""Upload: receive an artifact, keep its bytes, make a run of it."""

from __future__ import annotations

import secrets
import unicodedata
from typing import TYPE_CHECKING

from server.artifacts.sniff import sniff_head
from server.errors import InvalidRequestError, TooLargeError
from server.records import Run, now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from server.settings import Settings
    from server.store.blobs import Blobs, Incoming
    from server.store.state import Store

_HEAD_BYTES = 4096
_NAME_CHARS = 255


def shown_name(name: str) -> str:
    """Return an uploaded file's name fit to be shown; it never becomes a path."""
    kept = "".join(char for char in name if unicodedata.category(char)[0] != "C")
    return kept[:_NAME_CHARS]


class Upload:
    """Takes artifacts in: counted and hashed on the way, durable before the answer."""

    def __init__(self, settings: Settings, store: Store, blobs: Blobs) -> None:
        self._settings = settings
        self._store = store
        self._blobs = blobs

    async def receive(
        self,
        chunks: AsyncIterator[bytes],
        *,
        file_name: str,
        owner: str,
        model: Callable[[], str | None],
    ) -> Run:
        """Receive an artifact and return its run; both are durable then.

        ``model`` is asked once the last byte is there: a form may name it after the file.

        Raises:
            UnsupportedTypeError: the leading bytes are of no kind that we take.
            TooLargeError: more bytes than the limit.
            StorageFullError: the disk is full.
        """
        async with self._blobs.incoming() as incoming:
            await self._take(chunks, incoming)
            digest = await incoming.finish()
            run_id = secrets.token_hex(16)
            run = Run(
                run_id=run_id,
                owner=owner,
                model=model() or run_id,
                file_name=shown_name(file_name),
                size_bytes=incoming.size_bytes,
                digest=digest,
                created_at=now(),
            )
            async with self._blobs.referring:
                await self._blobs.keep(incoming, digest)
                await self._store.add_run(run)
        return run

    async def _take(self, chunks: AsyncIterator[bytes], incoming: Incoming) -> None:
        head = b""
        sniffed = False
        async for chunk in chunks:
            if incoming.size_bytes + len(chunk) > self._settings.max_upload_bytes:
                raise TooLargeError(
                    "artifact_too_large", limit_mb=self._settings.max_upload_bytes // 1024**2
                )
            if not sniffed:
                head += chunk[: _HEAD_BYTES - len(head)]
                if len(head) >= _HEAD_BYTES:
                    sniff_head(head)
                    sniffed = True
            await incoming.write(chunk)
        if not incoming.size_bytes:
            raise InvalidRequestError("file_empty")
        if not sniffed:
            sniff_head(head)
