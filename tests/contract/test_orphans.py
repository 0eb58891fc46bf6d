"""What a killed service left behind is ended by the folder's next owner."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from server.sandbox.orphans import end_orphans

if TYPE_CHECKING:
    from pathlib import Path

WAIT = "import sys; print('up', flush=True); sys.stdin.read()"


def process(*arguments: str) -> subprocess.Popen[bytes]:
    started = subprocess.Popen(
        [sys.executable, "-c", WAIT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert started.stdout is not None
    assert started.stdout.readline() == b"up\n"
    return started


def end(started: subprocess.Popen[bytes]) -> int:
    started.communicate()
    return started.returncode


def test_only_model_processes_of_this_folder_are_ended(tmp_path: Path) -> None:
    mine, other = tmp_path / "data", tmp_path / "data2"
    orphans = [
        process("serve", "--spec", str(mine / "replicas" / "a1" / "spec.json")),
        process("prove", "--spec", str(mine / "specs" / "b2" / "spec.json")),
    ]
    strangers = [
        process("serve", "--spec", str(other / "replicas" / "a1" / "spec.json")),
        process("edit", str(mine / "replicas" / "a1" / "spec.json")),
    ]

    assert end_orphans(mine) == 2

    assert [end(one) for one in orphans] == [-signal.SIGKILL] * 2
    assert [end(one) for one in strangers] == [0, 0]
    assert end_orphans(mine) == 0
