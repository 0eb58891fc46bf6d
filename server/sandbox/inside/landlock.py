"""Landlock: which files a process may still open; asked of the kernel, no library needed."""

import ctypes
import os
import stat
from typing import Iterable, List, Tuple

from server.sandbox.inside.kernel import ConfinementError, checked, libc

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION = 1
_BELOW = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FIRST_RIGHTS = (1 << 13) - 1
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE | _IOCTL_DEV
_NETWORK = 3
_SCOPES = 3

READ = READ_FILE | READ_DIR
WRITE = (_FIRST_RIGHTS | _REFER | _TRUNCATE) & ~(EXECUTE | _MAKE_CHAR | _MAKE_SOCK | _MAKE_BLOCK)
DEVICE = READ_FILE | WRITE_FILE | _IOCTL_DEV


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _Rule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("rights", ctypes.c_uint64), ("file", ctypes.c_int32))


def version() -> int:
    """Return the version of Landlock's interface; zero where there is none."""
    answer = libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
    return max(0, int(answer))


def rights_of(interface: int) -> Tuple[int, int, int, int]:
    """Return what an interface can refuse: files, network, scopes, and the size to ask with."""
    files = _FIRST_RIGHTS
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        files |= right if interface >= since else 0
    network = _NETWORK if interface >= 4 else 0
    scopes = _SCOPES if interface >= 6 else 0
    return files, network, scopes, 24 if interface >= 6 else 16 if interface >= 4 else 8


def restrict(granted: Iterable[Tuple[str, int]]) -> List[int]:
    """Leave this process and its threads the granted paths with these rights and no others.

    Where the interface knows of them, connections, abstract sockets and signals to processes
    outside are refused too. Returns files that have to stay open: a rule on an entry of
    ``/proc`` holds as long as the kernel remembers that entry.

    Raises:
        ConfinementError: there is no Landlock, or a path is not there.
    """
    interface = version()
    if interface < 1:
        raise ConfinementError("Landlock: this kernel has none, or it is switched off")
    files, network, scopes, size = rights_of(interface)
    wanted = _Ruleset(files, network, scopes)
    ruleset = checked(
        "Landlock",
        libc.syscall(_CREATE, ctypes.byref(wanted), ctypes.c_size_t(size), ctypes.c_uint(0)),
    )
    kept = [_allow(ruleset, path, rights & files) for path, rights in granted]
    checked("Landlock", libc.syscall(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0)))
    os.close(ruleset)
    return [file for file in kept if file >= 0]


def _allow(ruleset: int, path: str, rights: int) -> int:
    """Add a rule; returns the open file if it has to stay open, else -1."""
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise ConfinementError(f"Landlock: {path}: {error.strerror}") from error
    if not stat.S_ISDIR(os.fstat(file).st_mode):
        rights &= _OF_FILES
    rule = _Rule(rights, file)
    checked(
        f"Landlock: {path}",
        libc.syscall(
            _ADD, ctypes.c_int(ruleset), ctypes.c_int(_BELOW), ctypes.byref(rule), ctypes.c_uint(0)
        ),
    )
    if path.startswith("/proc/"):
        return file
    os.close(file)
    return -1
