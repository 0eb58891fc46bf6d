"""Every error we raise on purpose; no HTTP here.

PersephoneError
├── InvalidRequestError         a parameter, body or header that cannot be understood
│   └── UnsupportedTypeError    bytes or an encoding that we do not take
├── ForbiddenError              understood, and refused
│   └── UnauthenticatedError    refused until the caller says who it is
├── NotFoundError               unknown, or somebody else's
├── ConflictError               the state does not allow it now
├── TooLargeError               over a limit
├── BusyError                   over a quota or a rate; try again later
├── UnavailableError            nobody can answer at the moment
├── DeadlineError               somebody answers too slowly
├── StorageFullError            no room on the disk
└── StepFailedError             a step of a preparation or a roll-out ended in a known cause

Each carries a stable ``code`` (``[a-z][a-z0-9_]+``) and the parameters of its sentence; the
sentence itself stands in ``server/locale`` and is rendered per answer in the reader's language.
"""

from __future__ import annotations

import errno
from typing import Any

from server.scrubbing import scrubbed


class PersephoneError(Exception):
    """A failure with a stable code and the parameters of its sentence."""

    def __init__(self, code: str, /, **params: Any) -> None:
        super().__init__(code)
        self.code = code
        self.params: dict[str, Any] = params

    def __str__(self) -> str:
        details = ", ".join(f"{key}={value!r}" for key, value in self.params.items())
        return f"{self.code}({details})"


class InvalidRequestError(PersephoneError):
    """A parameter, body or header cannot be understood."""


class UnsupportedTypeError(InvalidRequestError):
    """The bytes, or their encoding, are of a kind that is not accepted."""


class ForbiddenError(PersephoneError):
    """The request is understood and refused."""


class UnauthenticatedError(ForbiddenError):
    """The caller has to say who it is first."""


class NotFoundError(PersephoneError):
    """There is no such thing for this caller."""


class ConflictError(PersephoneError):
    """The present state does not allow this."""


class TooLargeError(PersephoneError):
    """Something is over its limit."""


class BusyError(PersephoneError):
    """A quota or rate is used up; the caller may try again later."""


class UnavailableError(PersephoneError):
    """Nobody can answer at the moment."""


class DeadlineError(PersephoneError):
    """The answer took longer than its deadline."""


class StorageFullError(PersephoneError):
    """There is no room left on the disk."""


class StepFailedError(PersephoneError):
    """A step ended in a cause that has a name.

    ``evidence`` is the one line that shows the cause, if there is one; paths and what cannot be
    printed are taken out of it. ``log`` is what else was said of it, for the run's log.
    """

    log: tuple[str, ...] = ()

    def __init__(self, code: str, /, *, evidence: str = "", **params: Any) -> None:
        super().__init__(code, **params)
        self.evidence = scrubbed(evidence)


def is_full(error: OSError) -> bool:
    """Tell whether a disk, or the quota on it, is used up."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}
