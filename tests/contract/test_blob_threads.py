"""Receiving an artifact while its bytes are written and synced by threads."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import threading
from typing import TYPE_CHECKING

import pytest

from server.errors import StorageFullError
from server.store import blobs as module
from server.store.blobs import Blobs, Incoming

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024
CHUNK = os.urandom(3 * MIB)


@pytest.fixture
async def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    monkeypatch.setattr(module, "_SYNC_BYTES", MIB)
    made = Blobs(tmp_path / "blobs")
    await made.open()
    return made


async def test_what_is_synced_early_is_all_there(blobs: Blobs) -> None:
    async with blobs.incoming() as incoming:
        for _ in range(5):
            await incoming.write(CHUNK)
        digest = await incoming.finish()
        assert incoming.path.read_bytes() == 5 * CHUNK
    assert digest == hashlib.sha256(5 * CHUNK).hexdigest()


async def test_a_disk_that_fails_while_the_rest_arrives_fails_the_upload(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fdatasync", full)
    async with blobs.incoming() as incoming:
        await incoming.write(CHUNK)
        with pytest.raises(StorageFullError):
            await incoming.finish()


async def test_few_uploads_sync_early_at_the_same_time(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _descriptor: go_on.wait(30))

    async def receive() -> None:
        async with blobs.incoming() as incoming:
            await incoming.write(CHUNK)
            await incoming.settle()
            received.release()
            await incoming.finish()

    received = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(receive()) for _ in range(3)]
    for _ in tasks:
        await received.acquire()
    assert len(blobs._syncing) == 2
    go_on.set()
    await asyncio.gather(*tasks)


async def test_a_cancelled_upload_keeps_its_file_open_while_a_thread_uses_it(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    files = []

    def slow(_descriptor: int) -> None:
        loop.call_soon_threadsafe(started.set)
        go_on.wait(30)
        files.append(incoming.path.exists())

    monkeypatch.setattr(os, "fdatasync", slow)
    async with blobs.incoming() as incoming:
        await incoming.write(CHUNK)
        task = asyncio.create_task(incoming.finish())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        loop.call_later(0.05, go_on.set)
    assert files == [True]
    assert not incoming.path.exists()


async def test_a_disk_that_takes_a_part_of_a_write_gets_the_rest(tmp_path: Path) -> None:
    class Stingy(io.FileIO):
        def write(self, data: memoryview) -> int:
            return super().write(data[:100_000])

    path = tmp_path / "file"
    with Stingy(path, "xb") as file:
        incoming = Incoming(file, path, set())
        await incoming.write(CHUNK)
        digest = await incoming.finish()
    assert path.read_bytes() == CHUNK
    assert digest == hashlib.sha256(CHUNK).hexdigest()
