"""Upload: receive an artifact, keep its bytes, make a run of it."""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from server.artifacts.sniff import sniff_head
from server.errors import InvalidRequestError, PersephoneError
from server.faults import Point, Reached, nothing
from server.records import Run, now
from server.store.database import UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from server.store.blobs import Blobs, Incoming
    from server.store.state import Store

_HEAD_BYTES = 4096
_RUN_ID = re.compile(r"[0-9a-f]{32}")


class Upload:
    """Takes artifacts in: counted and hashed on the way, durable before the answer."""

    def __init__(self, store: Store, blobs: Blobs, *, reached: Reached = nothing) -> None:
        self._store = store
        self._blobs = blobs
        self._reached = reached
        # Bytes of uploads that could not be kept; at a start all such are known.
        self._left: set[str] = set()

    async def receive(
        self,
        chunks: AsyncIterator[bytes],
        *,
        file_name: str,
        owner: str,
        model: Callable[[], str | None],
        begin: Callable[[], Awaitable[None]],
    ) -> Run:
        """Receive an artifact and return its run; both are durable then.

        ``chunks`` ends without an error only if the file is whole and within its limit.
        ``model`` is asked once the last byte is there: a form may name it after the file.
        ``begin`` makes the owner durable, before anything belongs to it.

        Raises:
            UnsupportedTypeError: the leading bytes are of no kind that we take.
            InvalidRequestError: the model would be called like somebody else's run.
            StorageFullError: the disk is full.
            UnavailableError: the disk or the database fails.
        """
        async with self._blobs.incoming() as incoming:
            self._reached(Point.UPLOAD_OPENED)
            await self._take(chunks, incoming)
            self._reached(Point.UPLOAD_RECEIVED)
            digest = await incoming.finish()
            self._reached(Point.UPLOAD_SYNCED)
            run_id = secrets.token_hex(16)
            run = Run(
                run_id=run_id,
                owner=owner,
                model=self._name_for(owner, model()) or run_id,
                file_name=file_name,
                size_bytes=incoming.size_bytes,
                digest=digest,
                created_at=now(),
            )
            await begin()
            async with self._blobs.referring:
                await self._keep(incoming, run)
        self._reached(Point.UPLOAD_COMMITTED)
        return run

    def _name_for(self, owner: str, name: str | None) -> str | None:
        """Let an owner call a model so: what has the form of a run's id has to be one of his own.

        Else whoever knows a run's id, as all do who send it predictions, could answer them in its
        place once it is gone or before it is deployed.
        """
        if name is None or not _RUN_ID.fullmatch(name):
            return name
        if not any(name in {run.run_id, run.model} for run in self._store.runs_of(owner)):
            raise InvalidRequestError("model_name_is_run_id", value=name)
        return name

    async def _keep(self, incoming: Incoming, run: Run) -> None:
        """Keep the bytes and then the run; of what cannot be kept nothing stays behind."""
        try:
            await self._blobs.keep(incoming, run.digest)
            self._reached(Point.UPLOAD_KEPT)
            await self._store.add_run(run)
        except (PersephoneError, OSError) as error:
            self._left.add(run.digest)
            with suppress(PersephoneError):
                if isinstance(error, PersephoneError) and error.code == UNAVAILABLE:
                    # Else it may prove to be committed after all, and then needs its bytes.
                    await self._store.settle()
                await self._sweep()
            raise
        await self._sweep()

    async def _sweep(self) -> None:
        for digest in self._left - set(self._store.digests()):
            with suppress(OSError):
                await self._blobs.delete(digest)
        self._left.clear()

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
