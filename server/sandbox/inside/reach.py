"""Brings paths within reach of a user who may not pass the folders above them.

For a service that is root and keeps its data below a private folder. In a mount namespace of the
process's own an empty folder is mounted over the private one, and in it nothing but what was asked
for.
"""

import ctypes
import os
import stat
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from server.sandbox.inside.kernel import ConfinementError, checked, libc

_NEW_MOUNTS = 0x00020000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _REMOUNT = 1, 2, 4, 32
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_PLACE = _NO_SUID | _NO_DEVICES


def barrier(path: Path, user: int) -> Optional[Path]:
    """Return the topmost folder above ``path`` that the user may not pass; None if all are open."""
    for folder in reversed(path.parents):
        about = folder.stat()
        bit = (
            stat.S_IXUSR
            if about.st_uid == user
            else stat.S_IXGRP
            if about.st_gid == user
            else stat.S_IXOTH
        )
        if not about.st_mode & bit:
            return folder
    return None


def bring(read: Sequence[str], write: Sequence[str], user: int) -> None:
    """Let the user get to these paths, and to nothing else beside them.

    Raises:
        ConfinementError: this process may not mount.
    """
    hidden: Dict[Path, List[Tuple[Path, bool]]] = {}
    for paths, may_write in ((read, False), (write, True)):
        for path in map(Path, paths):
            folder = barrier(path, user)
            if folder is not None:
                hidden.setdefault(folder, []).append((path, may_write))
    if not hidden:
        return
    checked("mount namespace", libc.unshare(ctypes.c_int(_NEW_MOUNTS)))
    _mount(None, Path("/"), None, _RECURSIVE | _PRIVATE)
    for folder, wanted in hidden.items():
        _show(folder, wanted)


def _show(folder: Path, wanted: List[Tuple[Path, bool]]) -> None:
    # Held open, since nothing below the folder has a name any more once it is covered.
    held = [(os.open(path, os.O_PATH | os.O_CLOEXEC), path, write) for path, write in wanted]
    _mount(b"none", folder, b"tmpfs", _PLACE, b"mode=0755,size=1m")
    for file, path, may_write in sorted(held, key=lambda item: len(item[1].parts)):
        _place(file, path)
        _mount(b"/proc/self/fd/%d" % file, path, None, _BIND | _RECURSIVE)
        closed = 0 if may_write else _READ_ONLY
        _mount(None, path, None, _BIND | _REMOUNT | _PLACE | closed)
        os.close(file)
    _mount(None, folder, None, _BIND | _REMOUNT | _PLACE | _READ_ONLY)


def _place(file: int, path: Path) -> None:
    """Make something to mount on; a path below another that was asked for is there already."""
    if path.exists():
        return
    if stat.S_ISDIR(os.fstat(file).st_mode):
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _mount(
    source: Optional[bytes],
    target: Path,
    kind: Optional[bytes],
    flags: int,
    options: Optional[bytes] = None,
) -> None:
    answer = libc.mount(source, os.fsencode(target), kind, ctypes.c_ulong(flags), options)
    try:
        checked("mount", answer)
    except ConfinementError as error:
        raise ConfinementError(f"{error} ({target})") from None
