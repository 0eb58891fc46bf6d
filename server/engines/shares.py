"""The memory in which the replicas of one deployment tell each other what they hold."""

from __future__ import annotations

import fcntl
import os

# As server/model_server/sharing.py lays it out: three 64-bit numbers for each replica.
_SLOT_BYTES = 24
_SLOTS = 64


class Shares:
    """A deployment's shared memory, and which of its slots are taken."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create(
            "persephone-shares", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        )
        os.ftruncate(self.descriptor, _SLOTS * _SLOT_BYTES)
        # A replica that cut it short would crash the others.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        self._free = list(range(_SLOTS))

    def take(self) -> int | None:
        """Take a slot for a replica that starts; None if there are too many replicas."""
        return self._free.pop(0) if self._free else None

    def give_back(self, slot: int) -> None:
        """Free the slot of a replica that has ended, as the last one to be taken again."""
        self._free.append(slot)

    def close(self) -> None:
        """Close this process's copy; the replicas keep theirs."""
        os.close(self.descriptor)
