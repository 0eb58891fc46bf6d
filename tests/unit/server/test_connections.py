from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from server.api.connections import (
    EXHAUSTED,
    EXHAUSTED_FOR_ADDRESS,
    UNREAD_SECONDS,
    Connections,
    peer_of,
)


@dataclass(eq=False)
class Fake:
    """A connection that only says how it is."""

    waiting_since: float | None = None
    has_served: bool = False
    unread_bytes: int = 0
    ends: list[str] = field(default_factory=list)

    def make_room(self) -> None:
        self.ends.append("made room")

    def abort(self) -> None:
        self.ends.append("aborted")


@pytest.mark.parametrize(
    ("peer", "local", "counted"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("::1", "::1", None),
        ("", "127.0.0.1", None),
        ("127.0.0.2", "127.0.0.1", "127.0.0.2"),
        ("192.0.2.7", "10.0.0.1", "192.0.2.7"),
        ("::ffff:192.0.2.7", "::", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8::1", "2001:db8:1:2::"),
        ("2001:db8:1:2:bbbb::9", "2001:db8::1", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::2", "fe80::"),
        ("a socket", "another", "a socket"),
    ],
)
def test_callers_are_counted_by_address(peer: str, local: str, counted: str | None) -> None:
    assert peer_of(peer, local) == counted


async def test_busy_connections_are_let_in_up_to_the_limit_and_then_refused() -> None:
    refused: list[str] = []
    connections = Connections(2, 9, refused.append)
    first, second = Fake(), Fake()
    assert connections.admit(first, "a") is None
    assert connections.admit(second, "b") is None
    assert connections.admit(Fake(), "c") == EXHAUSTED
    assert refused == [EXHAUSTED]
    assert len(connections) == 2
    connections.leave(first)
    assert connections.admit(Fake(), "c") is None
    assert first.ends == second.ends == []


async def test_one_address_is_refused_where_others_are_not() -> None:
    refused: list[str] = []
    connections = Connections(9, 2, refused.append)
    for _ in range(2):
        assert connections.admit(Fake(), "a") is None
    assert connections.admit(Fake(), "a") == EXHAUSTED_FOR_ADDRESS
    assert connections.admit(Fake(), "b") is None
    # Callers of this machine share an address.
    for _ in range(4):
        assert connections.admit(Fake(), None) is None
    assert refused == [EXHAUSTED_FOR_ADDRESS]


async def test_who_waits_longest_makes_room_first_those_that_never_asked() -> None:
    connections = Connections(4, 9, lambda _code: None)
    kept = Fake(waiting_since=1.0, has_served=True)
    old, young, busy = Fake(waiting_since=2.0), Fake(waiting_since=3.0), Fake()
    for one in (kept, young, old, busy):
        connections.admit(one, None)
    for _ in range(3):
        assert connections.admit(Fake(), None) is None
    assert [one.ends for one in (old, young, kept, busy)] == [["made room"]] * 3 + [[]]
    assert len(connections) == 4
    assert connections.admit(Fake(), None) == EXHAUSTED


async def test_at_the_limit_of_an_address_its_own_connection_makes_room() -> None:
    connections = Connections(9, 1, lambda _code: None)
    other, own = Fake(waiting_since=1.0), Fake(waiting_since=2.0)
    connections.admit(other, "a")
    connections.admit(own, "b")
    assert connections.admit(Fake(), "b") is None
    assert (other.ends, own.ends) == ([], ["made room"])


async def test_a_caller_who_does_not_read_is_given_up() -> None:
    connections = Connections(9, 9, lambda _code: None)
    idle, stuck, slow = Fake(), Fake(unread_bytes=5), Fake(unread_bytes=5)
    for one in (idle, stuck, slow):
        connections.admit(one, None)
    connections.sweep(0.0)
    connections.sweep(UNREAD_SECONDS - 1)
    assert stuck.ends == []
    connections.moved(slow)
    connections.sweep(UNREAD_SECONDS)
    assert (idle.ends, stuck.ends, slow.ends) == ([], ["aborted"], [])
    slow.unread_bytes = 0
    connections.sweep(UNREAD_SECONDS + 1)
    slow.unread_bytes = 5
    connections.sweep(2 * UNREAD_SECONDS)
    assert slow.ends == []


async def test_it_looks_by_itself_as_long_as_there_are_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.api.connections.SWEEP_SECONDS", 0.001)
    monkeypatch.setattr("server.api.connections.UNREAD_SECONDS", 0.0)
    connections = Connections(9, 9, lambda _code: None)
    stuck = Fake(unread_bytes=5)
    connections.admit(stuck, None)
    async with asyncio.timeout(10):
        while not stuck.ends:
            await asyncio.sleep(0.001)
    connections.leave(stuck)
    connections.leave(stuck)
    assert connections._sweeping is None
