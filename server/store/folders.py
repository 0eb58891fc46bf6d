"""Folders on the disk: made durable, emptied, removed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def empty_folder(folder: Path) -> None:
    """Make a folder with nothing in it, whatever was there.

    Raises:
        OSError: it cannot be made.
    """
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that can be removed of it; that it is not there is fine.

    Raises:
        OSError: something of it is left.
    """
    failures: list[OSError] = []

    def note(_call: object, _path: str, info: tuple[type, BaseException, object]) -> None:
        if isinstance(info[1], OSError) and not isinstance(info[1], FileNotFoundError):
            failures.append(info[1])

    shutil.rmtree(folder, onerror=note)
    if failures:
        raise failures[0]


def sweep_folders(root: Path, known: Collection[str]) -> None:
    """Remove the folders of runs that are gone: a deletion may have been cut short."""
    if root.is_dir():
        for folder in root.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
