"""Calls into the C library that Python has no name for; a failure is never passed over."""

import ctypes
import os
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

libc = ctypes.CDLL(None, use_errno=True)


class ConfinementError(Exception):
    """A part of the confinement could not be had, so nothing foreign may run."""


def checked(what: str, answer: int) -> int:
    """Return what a C function answered.

    Raises:
        ConfinementError: it failed; ``what`` names the step.
    """
    if answer < 0:
        raise ConfinementError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return answer


def prctl(what: str, option: int, *values: Any) -> int:
    """Call ``prctl``.

    Raises:
        ConfinementError: it failed.
    """
    words = [value if not isinstance(value, int) else ctypes.c_ulong(value) for value in values]
    words += [ctypes.c_ulong(0)] * (4 - len(words))
    return checked(what, libc.prctl(ctypes.c_int(option), *words))
