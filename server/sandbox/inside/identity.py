"""Who the process is: an unprivileged user, without capabilities, maybe in a namespace of its own."""

import contextlib
import ctypes
import os
from pathlib import Path

from server.sandbox.inside.kernel import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    ConfinementError,
    checked,
    libc,
    prctl,
)

_NEW_USER_NAMESPACE = 0x10000000
_CAPABILITY_VERSION = 0x20080522
_CAPABILITIES = 64


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def become(user: int) -> None:
    """Be this user in the group of the same number, and in no other.

    Raises:
        ConfinementError: that is not allowed, or there is no such user here.
    """
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        raise ConfinementError(f"user {user}: {error.strerror}") from error
    # Else what /proc says of this process belongs to root, and it could not read it itself.
    prctl("dumpable", PR_SET_DUMPABLE, 1)


def enter_user_namespace() -> None:
    """Live in a user namespace that knows this one user only.

    Raises:
        ConfinementError: it cannot be made here.
    """
    user, group = os.getuid(), os.getgid()
    checked("user namespace", libc.unshare(ctypes.c_int(_NEW_USER_NAMESPACE)))
    try:
        Path("/proc/self/setgroups").write_bytes(b"deny")
        Path("/proc/self/uid_map").write_bytes(b"%d %d 1" % (user, user))
        Path("/proc/self/gid_map").write_bytes(b"%d %d 1" % (group, group))
    except OSError as error:
        raise ConfinementError(f"user namespace: {error.strerror}") from error


def give_up_rights() -> None:
    """Drop every capability and every way to gain one.

    Raises:
        ConfinementError: some are left.
    """
    for capability in range(_CAPABILITIES):
        # Who has none may not drop them from the bounding set, and needs not to.
        with contextlib.suppress(ConfinementError):
            prctl("capabilities", PR_CAPBSET_DROP, capability)
    prctl("capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    nothing = (_Data * 2)()
    header = _Header(_CAPABILITY_VERSION, 0)
    checked("capabilities", libc.capset(ctypes.byref(header), nothing))
    prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)
