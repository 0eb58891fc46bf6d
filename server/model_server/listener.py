"""Accepts connections on an inherited socket, stops when told to, and keeps a fair share."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from contextlib import suppress
from typing import Optional, Set

from server.model_server.connections import Connection
from server.model_server.reading import KnownHeads
from server.model_server.refusals import Answers
from server.model_server.requests import Handler, Heads
from server.model_server.sharing import Share
from server.model_server.wires import Wire

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
SWEEP_SECONDS = 0.5
_ACCEPTS_AT_ONCE = 16
_RETRY_ACCEPT_SECONDS = 0.2
_FINISH_SECONDS = 1.0
_YIELD_SECONDS = 0.001
"""How long a connection is left to a less busy replica, for each that we hold more than it."""
_LONGEST_YIELD_SECONDS = 0.01


class Listener:
    """Accepts on an inherited socket that stays open in other processes.

    Stopping gives the connections that still come to those others; closing drops this
    process's own copy and leaves theirs alone. With a ``share``, connections are left to the
    replicas that hold fewer.
    """

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        answers: Answers,
        share: Optional[Share] = None,
    ) -> None:
        self._socket = sock
        self._handler = handler
        self._answers = answers
        self._share = share
        self._heads = Heads()
        self._known = KnownHeads()
        self._loop = asyncio.get_running_loop()
        self._wanted = False
        self._reading = False
        self._yielded = 0.0
        self._open: Set[Connection] = set()
        self._all_left = asyncio.Event()
        self._sweeping = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        sock.setblocking(False)

    @property
    def is_accepting(self) -> bool:
        """Whether new connections are taken, or will be as soon as there is room."""
        return self._wanted

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def open_connections(self) -> Set[Connection]:
        """The connections that are open."""
        return self._open

    def start(self) -> None:
        """Begin to accept; already doing so is success."""
        self._wanted = True
        self._changed()

    def stop(self) -> None:
        """Stop accepting and keep the socket."""
        self._wanted = False
        self._changed()

    def close(self) -> None:
        """Stop accepting for good and close this process's copy of the socket."""
        self.stop()
        self._socket.close()

    def close_idle(self) -> None:
        """Close every connection that has no request under way."""
        for connection in list(self._open):
            connection.close_idle()

    def abort(self) -> None:
        """End every connection at once."""
        for connection in list(self._open):
            connection.abort()

    async def finish(self) -> None:
        """End every connection and wait for what ran on it."""
        self._sweeping.cancel()
        self.abort()
        if self.connections:
            self._all_left.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_left.wait(), _FINISH_SECONDS)

    def _sweep(self) -> None:
        self._heads.refresh()
        self._part()
        if self._wanted and not self._reading:
            # All were busy, and one may be so no more.
            self._changed()
        now = time.perf_counter()
        for connection in list(self._open):
            connection.sweep(now)
        self._sweeping = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _changed(self) -> None:
        """Tell the other replicas how many we hold, and look again whether to accept."""
        if self._share is not None:
            self._share.publish(self.connections, self._wanted)
        if self._socket.fileno() >= 0:
            self._poll()

    def _poll(self) -> None:
        """Watch the socket while connections are wanted and there is room, or can be made."""
        is_full = self.connections >= MAX_CONNECTIONS
        wanted = self._wanted and not (is_full and self._idlest() is None)
        if wanted and not self._reading:
            self._loop.add_reader(self._socket.fileno(), self._accept)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._socket.fileno())
        self._reading = wanted

    def _part(self) -> None:
        """Choose the connections that are to come again, where a new replica may take them.

        Accepting fairly is not enough: who starts after a crash finds all connections taken, and
        clients keep theirs for hours. Idle ones may be chosen in vain, so each sweep chooses anew.
        """
        if self._share is None:
            return
        self._changed()
        surplus = self._share.surplus() if self._wanted else 0
        chosen = random.sample(list(self._open), min(surplus, len(self._open)))
        for connection in self._open:
            connection.is_parting = connection in chosen

    def _idlest(self) -> Optional[Connection]:
        """Return the connection that has been silent longest, if one waits for its next request."""
        waiting = [(since, one) for one in self._open if (since := one.waits_since) is not None]
        return min(waiting, key=lambda each: each[0])[1] if waiting else None

    def _make_room(self) -> None:
        """At the limit let go of whoever was silent longest, so that silence keeps nobody out."""
        idlest = self._idlest() if self.connections >= MAX_CONNECTIONS else None
        if idlest is not None:
            idlest.abort()

    def _pause(self, seconds: float) -> None:
        """Look away for a while: the readable socket would wake us without end."""
        self._loop.remove_reader(self._socket.fileno())
        self._reading = False
        self._loop.call_later(seconds, self._changed)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE if self._share is None else 1):
            if not self._reading or self._leaves_it_to_others():
                return
            try:
                accepted, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                self._yielded = 0.0
                return
            except OSError as error:
                # No descriptors or memory.
                logger.error("cannot accept: %s", error.strerror)  # noqa: TRY400
                self._pause(_RETRY_ACCEPT_SECONDS)
                return
            self._yielded = 0.0
            self._make_room()
            Wire(self._loop, accepted, self._connection())
            self._changed()

    def _leaves_it_to_others(self) -> bool:
        """Yield to the replicas that hold fewer connections, but not for ever."""
        excess = self._share.excess() if self._share is not None else 0
        if excess <= 0:
            return False
        now = self._loop.time()
        if not self._yielded:
            self._yielded = now
        elif now - self._yielded >= _LONGEST_YIELD_SECONDS:
            # They are too busy to take it: better unfair than late.
            return False
        self._pause(min(excess * _YIELD_SECONDS, _LONGEST_YIELD_SECONDS))
        return True

    def _connection(self) -> Connection:
        return Connection(
            self._handler,
            self._answers,
            self._heads,
            self._known,
            joined=self._open.add,
            left=self._leave,
        )

    def _leave(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_left.set()
        self._changed()
