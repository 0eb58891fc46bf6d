"""The newest Xid of each GPU: the driver tells them as events only, so somebody has to listen."""

from __future__ import annotations

import ctypes
from typing import Any

XID_EVENTS = 0x8
"""NVML's bit for critical errors."""
_AT_ONCE = 256
"""Events that one reading takes; more are taken by the next one."""


class XidWatch:
    """Listens from the first reading on; what was before is not known.

    ``nvml`` is ``pynvml`` or a stand-in. The library may be shut down and begun anew, which ends
    its events: :meth:`restart` says so.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._events: Any = None
        self._cards: dict[int | None, str] = {}
        self._last: dict[str, int] = {}

    def restart(self) -> None:
        """Forget what the library forgot; the numbers seen so far stay."""
        self._events = None
        self._cards = {}

    def watch(self, handle: Any, uuid: str) -> None:
        """Listen to a card.

        Raises:
            NVMLError: the driver has no events for it, or the card is lost.
        """
        address = _address(handle)
        if address in self._cards:
            return
        if self._events is None:
            self._events = self._nvml.nvmlEventSetCreate()
        self._nvml.nvmlDeviceRegisterEvents(handle, XID_EVENTS, self._events)
        # By address: a card that fell off the bus does not tell its UUID any more.
        self._cards[address] = uuid
        self._last.setdefault(uuid, 0)

    def drain(self) -> None:
        """Take the events that have come, without waiting for any; raises nothing."""
        if self._events is None:
            return
        for _ in range(_AT_ONCE):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError:
                # None is there, or the card that would have told is lost.
                return
            uuid = self._cards.get(_address(event.device))
            if uuid is not None:
                self._last[uuid] = int(event.eventData)

    def last(self, uuid: str) -> int | None:
        """Return the newest Xid of a card, 0 for none; None if it cannot be listened to."""
        return self._last.get(uuid)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
