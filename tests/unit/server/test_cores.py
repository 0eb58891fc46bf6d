"""How many cores there are, where a container is given fewer than the machine has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from server.cores import usable_cores

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/", {"cpu.max": "max 100000\n"}, 8),
        ("0::/a/b", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000\n"}, 4),
        ("0::/a", {"a/cpu.max": "20000 100000\n"}, 1),
        ("0::/../outside", {"cpu.max": "300000 100000\n"}, 3),
        (
            "4:cpu,cpuacct:/a\n0::/",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        (None, {}, 8),
    ],
)
def test_a_quota_bounds_the_cores(
    own: str | None, files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own + "\n")

    assert usable_cores(tmp_path / "cgroup", tmp_path / "own") == cores
