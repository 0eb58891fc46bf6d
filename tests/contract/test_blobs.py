"""Artifacts on a real disk."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from server.errors import StepFailedError, StorageFullError
from server.store.blobs import Blobs

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = os.urandom(5_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
async def blobs(tmp_path: Path) -> Blobs:
    made = Blobs(tmp_path / "blobs")
    await made.open()
    return made


async def receive(blobs: Blobs, content: bytes = CONTENT) -> str:
    async with blobs.incoming() as incoming:
        for start in range(0, len(content), 700_001):
            await incoming.write(content[start : start + 700_001])
        digest = await incoming.finish()
        assert incoming.size_bytes == len(content)
        await blobs.keep(incoming, digest)
    return digest


def files(blobs: Blobs, tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


async def test_what_was_received_is_kept_under_its_digest(blobs: Blobs, tmp_path: Path) -> None:
    assert await receive(blobs) == DIGEST
    assert await receive(blobs) == DIGEST
    assert files(blobs, tmp_path) == [blobs.path(DIGEST)]
    assert await blobs.verify(DIGEST) == len(CONTENT)


async def test_an_upload_that_breaks_off_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        async with blobs.incoming() as incoming:
            await incoming.write(CONTENT)
            raise ConnectionError
    assert files(blobs, tmp_path) == []


async def test_damage_is_noticed(blobs: Blobs) -> None:
    await receive(blobs)
    with blobs.path(DIGEST).open("r+b") as file:
        file.write(b"x")
    with pytest.raises(StepFailedError, match="artifact_damaged"):
        await blobs.verify(DIGEST)
    await blobs.delete(DIGEST)
    await blobs.delete(DIGEST)
    with pytest.raises(StepFailedError, match="artifact_missing"):
        await blobs.verify(DIGEST)


async def test_a_full_disk_is_named(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(StorageFullError):
        async with blobs.incoming() as incoming:
            os.close(incoming._file.fileno())
            full = os.open("/dev/full", os.O_WRONLY)
            assert full == incoming._file.fileno()
            await incoming.write(CONTENT)
            await incoming.finish()
    assert files(blobs, tmp_path) == []


async def test_only_blobs_that_nobody_knows_are_swept(blobs: Blobs) -> None:
    await receive(blobs)
    assert await blobs.sweep_orphans([DIGEST]) == 0
    assert await blobs.sweep_orphans([]) == 1


async def test_what_a_killed_service_left_half_received_is_removed(
    blobs: Blobs, tmp_path: Path
) -> None:
    (tmp_path / "blobs" / "incoming" / "left").write_bytes(b"x")
    await blobs.open()
    assert files(blobs, tmp_path) == []
