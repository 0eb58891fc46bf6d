"""A copy of the service's own interpreter, for users that cannot read it where it lies."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from server.sandbox.launch import base_prefix, base_python

# What no model process needs; packages come from its environment.
_LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "ensurepip", "turtledemo", "config-*")


def copy_interpreter(root: Path) -> Path:
    """Return the copy's program below ``root``, made if it is not there or of another interpreter.

    Raises:
        OSError: it cannot be read or written.
    """
    program, prefix = Path(base_python()), base_prefix()
    copy = root / _name(program)
    target = copy / "bin" / "python"
    if target.exists():
        return target
    shutil.rmtree(root, ignore_errors=True)
    draft = root / ".draft"
    library = Path(sys.platlibdir) / f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(
        prefix / library, draft / library, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=False
    )
    for shared in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy(shared, draft / "lib" / shared.name)
    (draft / "bin").mkdir()
    shutil.copy(program, draft / "bin" / "python")
    _open(draft)
    draft.rename(copy)
    root.chmod(0o711)
    return target


def _name(program: Path) -> str:
    about = program.stat()
    told = f"{program}\n{sys.version}\n{about.st_size}\n{about.st_mtime_ns}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _open(folder: Path) -> None:
    """Let everybody read it, whatever the modes were."""
    for place, _, files in os.walk(folder):
        Path(place).chmod(0o755)
        for name in files:
            file = Path(place, name)
            file.chmod(file.stat().st_mode & 0o755 | 0o444)
