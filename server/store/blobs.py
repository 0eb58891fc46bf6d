"""Artifacts on the disk, each stored once under the SHA-256 of its bytes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, BinaryIO

from server.errors import StepFailedError
from server.faults import Point, Reached, nothing
from server.machine import explained
from server.store.folders import sync_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

_BATCH_BYTES = 2 * 1024 * 1024
_READ_BYTES = 1024 * 1024
# The disk works while the rest arrives: what is synced early need not be waited for at the end.
_SYNC_BYTES = 32 * 1024 * 1024
_SYNCS_AT_ONCE = 2


class Incoming:
    """A file that is being received: hashed on the way, durable once committed."""

    def __init__(self, file: BinaryIO, path: Path, syncing: set[asyncio.Future[None]]) -> None:
        self._file = file
        self.path = path
        self._hash = hashlib.sha256()
        self._batch: list[bytes] = []
        self._batched = 0
        self._writing: asyncio.Future[None] | None = None
        self._all_syncing = syncing
        self._syncing: asyncio.Future[None] | None = None
        self._unsynced = 0
        self.size_bytes = 0

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            StorageFullError: the disk is full.
            UnavailableError: the disk fails.
        """
        self._batch.append(chunk)
        self._batched += len(chunk)
        self.size_bytes += len(chunk)
        if self._batched >= _BATCH_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        # One batch is written while the next one arrives; never more than one.
        await self.settle()
        self._unsynced += self._batched
        batch, self._batch, self._batched = self._batch, [], 0
        loop = asyncio.get_running_loop()
        if self._unsynced >= _SYNC_BYTES:
            await self._sync_early(loop)
        self._writing = loop.run_in_executor(None, self._put, batch)

    async def _sync_early(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._syncing is not None and self._syncing.done():
            await self._settle_sync()
        # Few at a time: the threads are everybody's.
        if self._syncing is None and len(self._all_syncing) < _SYNCS_AT_ONCE:
            self._unsynced = 0
            self._syncing = loop.run_in_executor(None, os.fdatasync, self._file.fileno())
            self._all_syncing.add(self._syncing)
            self._syncing.add_done_callback(self._all_syncing.discard)

    async def _settle_sync(self) -> None:
        # The kernel tells of a failed write once: the last sync would not hear of it again.
        if self._syncing is not None:
            await _explaining(self._syncing)
            self._syncing = None

    async def settle(self) -> None:
        """Wait for the batch that is being written."""
        if self._writing is not None:
            await _explaining(self._writing)
            self._writing = None

    def _put(self, batch: list[bytes]) -> None:
        for chunk in batch:
            self._hash.update(chunk)
            rest = memoryview(chunk)
            while rest:
                # A disk that is nearly full takes a part, and says why only at the next attempt.
                rest = rest[self._file.write(rest) :]

    async def finish(self) -> str:
        """Bring the last bytes to the disk and return the SHA-256 in hex."""
        await self._flush()
        await self.settle()
        await self._settle_sync()
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._sync)
        await self.settle()
        return self._hash.hexdigest()

    async def abandon(self) -> None:
        """Wait until no thread uses the file any more, whatever became of its work."""
        pending = [work for work in (self._writing, self._syncing) if work is not None]
        if pending:
            await asyncio.wait(pending)
        for work in pending:
            # Taken note of: an upload that ends early has said why already.
            work.exception()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


async def _explaining(work: asyncio.Future[None]) -> None:
    try:
        # Cancelling the upload does not end the thread that uses its file.
        await asyncio.shield(work)
    except OSError as error:
        raise explained(error) or error from error


class Blobs:
    """Write-once files by digest below ``root``."""

    def __init__(self, root: Path, *, reached: Reached = nothing) -> None:
        self._root = root
        self._reached = reached
        self._incoming = root / "incoming"
        self._syncing: set[asyncio.Future[None]] = set()
        # Held while a reference to a blob is made or the last one is looked for.
        self.referring = asyncio.Lock()

    async def open(self) -> None:
        """Make the folders; remove what a killed service left half-received."""
        await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left in self._incoming.iterdir():
            left.unlink()

    def path(self, digest: str) -> Path:
        """Return where a digest's bytes lie."""
        return self._root / digest[:2] / digest

    @asynccontextmanager
    async def incoming(self) -> AsyncIterator[Incoming]:
        """Open a file to receive into; it is gone at the end unless it was kept."""
        path = self._incoming / secrets.token_hex(16)
        try:
            file = await asyncio.to_thread(path.open, "xb", buffering=0)
        except OSError as error:
            raise explained(error) or error from error
        incoming = Incoming(file, path, self._syncing)
        try:
            yield incoming
        finally:
            await incoming.abandon()
            await asyncio.to_thread(_discard, file, path)

    async def keep(self, incoming: Incoming, digest: str) -> None:
        """Move a received file to its place and make that durable."""
        try:
            await asyncio.to_thread(self._keep, incoming.path, digest)
        except OSError as error:
            raise explained(error) or error from error

    def _keep(self, source: Path, digest: str) -> None:
        target = self.path(digest)
        if not target.parent.exists():
            target.parent.mkdir(exist_ok=True)
            sync_folder(self._root)
        source.replace(target)
        self._reached(Point.UPLOAD_RENAMED)
        sync_folder(target.parent)

    async def verify(self, digest: str) -> int:
        """Read a blob again and compare; return its size in bytes.

        Raises:
            StepFailedError: the bytes are gone or are not those that were uploaded.
        """
        return await asyncio.to_thread(self._verify, digest)

    def _verify(self, digest: str) -> int:
        found = hashlib.sha256()
        size = 0
        try:
            with self.path(digest).open("rb") as file:
                while chunk := file.read(_READ_BYTES):
                    found.update(chunk)
                    size += len(chunk)
        except FileNotFoundError:
            raise StepFailedError("artifact_missing") from None
        if found.hexdigest() != digest:
            raise StepFailedError("artifact_damaged", digest=digest[:12])
        return size

    async def delete(self, digest: str) -> None:
        """Remove a blob; already gone is success."""
        await asyncio.to_thread(self.path(digest).unlink, missing_ok=True)

    async def sweep_orphans(self, known: Collection[str]) -> int:
        """Remove blobs that no run refers to, before any upload begins; return how many."""
        return await asyncio.to_thread(self._sweep_orphans, set(known))

    def _sweep_orphans(self, known: set[str]) -> int:
        swept = 0
        for folder in self._root.iterdir():
            if len(folder.name) != 2:
                continue
            for blob in folder.iterdir():
                if blob.name not in known:
                    blob.unlink(missing_ok=True)
                    swept += 1
        return swept


def _discard(file: BinaryIO, path: Path) -> None:
    file.close()
    path.unlink(missing_ok=True)
