"""What the machine under the service refuses, in our words."""

from __future__ import annotations

import errno

from server.errors import PersephoneError, StorageFullError, UnavailableError, is_full

_FAILING = frozenset({errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ESTALE})
# The last one is what uvloop makes of pipes that cannot be had.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, -1})


def explained(error: OSError) -> PersephoneError | None:
    """Return what an error of the operating system means to a caller, or None if it is our own.

    A connection that broke is none of these, nor is a file that should be there and is not.
    """
    if is_full(error):
        return StorageFullError("disk_full")
    if error.errno in _FAILING:
        return UnavailableError("disk_failing")
    if error.errno in _EXHAUSTED:
        return UnavailableError(
            "machine_exhausted", reason=errno.errorcode.get(error.errno, "EMFILE")
        )
    return None
