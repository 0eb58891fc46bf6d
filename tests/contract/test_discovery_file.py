"""The list of replicas as a file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from metrics.targets import Target
from server.reconcile import discovery_file
from server.reconcile.discovery_file import DiscoveryFile
from tests.support.engines import until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def target(replica: str) -> Target:
    return Target(run_id="r", model="m", environment="dev", replica=replica, version="1")


def listed(path: Path) -> list[Any]:
    return json.loads(path.read_text())


async def test_the_file_follows_the_targets_and_is_empty_at_the_end(tmp_path: Path) -> None:
    path, targets = tmp_path / "targets.json", [target("0")]
    file = DiscoveryFile(path, "127.0.0.1:8000")
    file.open(lambda: targets)
    await until(lambda: path.exists() and len(listed(path)) == 1)

    [entry] = listed(path)
    assert entry["targets"] == ["127.0.0.1:8000"]
    assert entry["labels"]["run_id"] == "r"
    assert entry["labels"]["__metrics_path__"] == "/sd/replicas/r~dev~1~0/metrics"
    targets.append(target("1"))
    file.changed()
    await until(lambda: len(listed(path)) == 2)
    targets.clear()
    file.changed()
    await until(lambda: listed(path) == [])
    targets.append(target("1"))
    file.changed()
    await file.close()
    assert listed(path) == []
    assert [one.name for one in tmp_path.iterdir()] == ["targets.json"]


async def test_the_file_is_replaced_and_never_half_written(tmp_path: Path) -> None:
    path, targets = tmp_path / "targets.json", [target("0")]
    file = DiscoveryFile(path, "h:1")
    file.open(lambda: targets)
    await until(path.exists)
    with path.open() as before:
        targets.append(target("1"))
        file.changed()
        await until(lambda: os.fstat(before.fileno()).st_ino != path.stat().st_ino)
        assert len(json.loads(before.read())) == 1
    written = path.stat().st_ino
    file.changed()
    await file.close()
    assert path.stat().st_ino != written


async def test_a_full_disk_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery_file, "_RETRY_SECONDS", 0.01)
    path = tmp_path / "later" / "targets.json"
    file = DiscoveryFile(path, "h:1")
    file.open(lambda: [target("0")])
    await until(lambda: "cannot be written" in caplog.text)
    path.parent.mkdir()
    await until(path.exists)
    await file.close()
