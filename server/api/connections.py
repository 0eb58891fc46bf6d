"""How many connections there may be, in all and from one address, and which one makes room."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

EXHAUSTED = "connections_exhausted"
EXHAUSTED_FOR_ADDRESS = "connections_exhausted_for_address"

SWEEP_SECONDS = 5.0
# An answer that nobody reads: 64 KiB within this time is slower than anybody's network.
UNREAD_SECONDS = 60.0


class Connection(Protocol):
    """What is asked of one connection."""

    @property
    def waiting_since(self) -> float | None:
        """When it began to wait for a request, on the event loop's clock; None while one is on it."""

    @property
    def has_served(self) -> bool:
        """Whether a request ever came on it."""

    @property
    def unread_bytes(self) -> int:
        """Bytes of answers that its caller has not taken yet."""

    def make_room(self) -> None:
        """Close it, since another one needs its place."""

    def abort(self) -> None:
        """Close it at once, whatever is unsent."""


def peer_of(peer: str, local: str) -> str | None:
    """Return under which name a caller's address is counted; None if it is not.

    Who comes from the very address that he goes to is on this machine: a proxy, or one of several
    users, who share it.
    """
    return None if not peer or peer == local else counted_as(peer)


def counted_as(peer: str) -> str:
    """Return the name under which a caller's address is counted."""
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # An IPv6 caller has a whole /64 to choose from.
    return str(IPv6Address(int(address) >> 64 << 64))


class Connections:
    """The open connections of the API.

    At a limit the connection that has waited longest for a request makes room for the new one, first
    of those that never brought any: so no number of silent callers keeps others out. Only when all
    are busy the new one is refused. A connection whose caller stops reading ends after a minute.
    """

    def __init__(self, total: int, per_address: int, refused: Callable[[str], None]) -> None:
        self._total = total
        self._per_address = per_address
        self._refused = refused
        self._peers: dict[Connection, str | None] = {}
        self._unread_since: dict[Connection, float] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._peers)

    def admit(self, one: Connection, peer: str | None) -> str | None:
        """Count a new connection, or return the code of its refusal."""
        code = None
        if peer is not None:
            of_peer = [other for other, theirs in self._peers.items() if theirs == peer]
            if len(of_peer) >= self._per_address and not self._make_room(of_peer):
                code = EXHAUSTED_FOR_ADDRESS
        if code is None and len(self._peers) >= self._total and not self._make_room(self._peers):
            code = EXHAUSTED
        if code is not None:
            self._refused(code)
            return code
        self._peers[one] = peer
        if self._sweeping is None:
            self._sweep_later()
        return None

    def _make_room(self, among: Iterable[Connection]) -> bool:
        waiting = [
            (one.has_served, since, one)
            for one in among
            if (since := one.waiting_since) is not None
        ]
        if not waiting:
            return False
        _, _, oldest = min(waiting, key=lambda each: each[:2])
        self.leave(oldest)
        oldest.make_room()
        return True

    def leave(self, one: Connection) -> None:
        """Forget a connection; unknown is fine."""
        self._peers.pop(one, None)
        self._unread_since.pop(one, None)
        if not self._peers and self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def moved(self, one: Connection) -> None:
        """Note that a caller has taken most of what was waiting for it."""
        self._unread_since.pop(one, None)

    def sweep(self, now: float) -> None:
        """End the connections whose callers do not read; ``now`` is the event loop's time."""
        for one in list(self._peers):
            if not one.unread_bytes:
                self.moved(one)
            elif now - self._unread_since.setdefault(one, now) >= UNREAD_SECONDS:
                one.abort()

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()

        def sweep() -> None:
            self.sweep(loop.time())
            self._sweep_later()

        self._sweeping = loop.call_later(SWEEP_SECONDS, sweep)
