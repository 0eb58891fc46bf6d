"""Folders that a disk does not let go of at once."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from server.store.folders import remove_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_what_can_be_removed_is_and_the_rest_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    for name in ("a", "b/c", "b/d", "e"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    unlink = os.unlink

    def fail_at_c(path: Any, **more: Any) -> None:
        if str(path).endswith("c"):
            raise OSError(errno.EIO, "the disk fails", path)
        unlink(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail_at_c)
        with pytest.raises(OSError, match="the disk fails"):
            remove_folder(folder)
    assert [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))] == ["b", "b/c"]
    remove_folder(folder)
    assert not folder.exists()
    remove_folder(folder)
