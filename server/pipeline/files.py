"""The files that a preparation makes: the model's folder, and what its process is told."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import StepFailedError
from server.store.folders import empty_folder, sync_folder

if TYPE_CHECKING:
    from server.pipeline.report import InspectionReport
    from server.records import Params


def settle_files(blob: Path, folder: Path, report: InspectionReport) -> None:
    """Make the files of an inspected model durable.

    A bare file needs no copy: the artifact itself is the model's file.

    Raises:
        StepFailedError: what was unpacked is not what was reported.
    """
    file = folder / report.file
    if not os.path.lexists(file):
        os.link(blob, file)
    names = [report.file, *([report.sample] if report.sample else [])]
    for name in names:
        with suppress(FileNotFoundError):
            if stat.S_ISREG((folder / name).lstat().st_mode):
                _sync_file(folder / name)
                continue
        raise StepFailedError("inspection_failed", evidence=name)
    if file.parent != folder:
        _sync_below(file.parent)
    sync_folder(folder)
    sync_folder(folder.parent)


def _sync_below(top: Path) -> None:
    """Make everything below a folder durable: a model's weights may lie beside it."""
    for place, _, names in os.walk(top):
        for name in names:
            if stat.S_ISREG(Path(place, name).lstat().st_mode):
                _sync_file(Path(place, name))
        sync_folder(Path(place))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_spec(folder: Path, spec: Params) -> None:
    """Write what a model process reads at its start, into a folder of its own."""
    empty_folder(folder)
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
