"""Upload: receive an artifact, keep its bytes, make a run of it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from server.artifacts.sniff import sniff_head
from server.records import Run, now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from server.store.blobs import Blobs, Incoming
    from server.store.state import Store

_HEAD_BYTES = 4096


class Upload:
    """Takes artifacts in: counted and hashed on the way, durable before the answer."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
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

        ``chunks`` ends without an error only if the file is whole and within its limit.
        ``model`` is asked once the last byte is there: a form may name it after the file.

        Raises:
            UnsupportedTypeError: the leading bytes are of no kind that we take.
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
                file_name=file_name,
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
            if not sniffed:
                head += chunk[: _HEAD_BYTES - len(head)]
                if len(head) >= _HEAD_BYTES:
                    sniff_head(head)
                    sniffed = True
            await incoming.write(chunk)
        if not sniffed:
            sniff_head(head)
