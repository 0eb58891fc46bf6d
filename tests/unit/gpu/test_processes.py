"""Which processes belong to one that we started."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from gpu.processes import family

if TYPE_CHECKING:
    from pathlib import Path


def tree(proc: Path, children: dict[int, str]) -> Path:
    for pid, text in children.items():
        task = proc / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text(text)
    return proc


def test_a_family_has_the_grandchildren_too(tmp_path: Path) -> None:
    proc = tree(tmp_path, {1: "2 3 ", 2: "4 ", 3: "", 4: "", 9: "1 "})

    assert family([1], proc=proc) == {1, 2, 3, 4}


def test_a_process_that_ended_has_no_children(tmp_path: Path) -> None:
    assert family([5], proc=tree(tmp_path, {1: "2"})) == {5}


def test_a_loop_in_the_table_ends(tmp_path: Path) -> None:
    assert family([1], proc=tree(tmp_path, {1: "2", 2: "1"})) == {1, 2}


def test_a_real_child_is_found() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert child.pid in family([os.getpid()])
