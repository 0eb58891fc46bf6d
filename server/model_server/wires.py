"""A connected socket in the event loop, which tells when what it reads had arrived."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from contextlib import suppress
from typing import Any, List, Optional, Protocol, Sequence

logger = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
_READS_AT_ONCE = 16
_MOST_PIECES = 64
_STAMP = getattr(socket, "SO_TIMESTAMPNS", 35)
"""Linux' number of the option and of its message; Python has no name for it."""
_SECONDS = struct.Struct("@ll")
_ROOM = socket.CMSG_SPACE(_SECONDS.size)


class Heard(Protocol):
    """Who is told what happens on a wire."""

    def connection_made(self, transport: Wire) -> None:
        """Begin."""

    def connection_lost(self, exc: Optional[BaseException]) -> None:
        """End."""

    def data_arrived(self, data: bytes, now: float, arrived: float) -> None:
        """Take bytes, read now; times of ``time.perf_counter``."""

    def eof_received(self) -> bool:
        """Take note that no more will come; True keeps the wire open for answers."""

    def pause_writing(self) -> None:
        """Take note that not all that was written is gone."""

    def resume_writing(self) -> None:
        """Take note that it is."""


class Wire:
    """Reads and writes one socket; does what asyncio's transports do.

    They do not tell when bytes arrived. The kernel does: while the loop was busy or the process
    slept, a client has waited already.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, heard: Heard) -> None:
        self._loop = loop
        self._socket = sock
        self._descriptor = sock.fileno()
        self._heard = heard
        self._left: List[memoryview] = []
        self._is_closing = self._is_paused = self._at_eof = self._ends = self._is_lost = False
        self._read_at = time.perf_counter()
        sock.setblocking(False)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _STAMP, 1)
        if sock.family != socket.AF_UNIX:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        heard.connection_made(self)
        if not self._is_closing:
            loop.add_reader(self._descriptor, self._readable)

    # ── reading

    def _readable(self) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                data, notes, _flags, _address = self._socket.recvmsg(_READ_BYTES, _ROOM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lose(error)
                return
            if not data:
                self._end_reading()
                return
            now = time.perf_counter()
            arrived = self._arrived(notes, now) if notes else now
            self._read_at = now
            try:
                self._heard.data_arrived(data, now, arrived)
            except Exception:
                logger.exception("what came on a connection was not handled")
                self.abort()
            if len(data) < _READ_BYTES or self._is_paused or self._is_closing:
                return

    def _arrived(self, notes: Any, now: float) -> float:
        """Translate the kernel's note of when the bytes came."""
        level, kind, stamp = notes[0]
        if level != socket.SOL_SOCKET or kind != _STAMP or len(stamp) != _SECONDS.size:
            return now
        seconds, nanoseconds = _SECONDS.unpack(stamp)
        ago = time.time() - (seconds + nanoseconds * 1e-9)
        # The clock may have been set in between; what came before the last reading was read then.
        return max(now - ago, self._read_at) if ago > 0 else now

    def _end_reading(self) -> None:
        self._at_eof = True
        self._loop.remove_reader(self._descriptor)
        if not self._heard.eof_received():
            self.close()

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        if not self._is_paused and not self._at_eof and not self._is_closing:
            self._is_paused = True
            self._loop.remove_reader(self._descriptor)

    def resume_reading(self) -> None:
        """Read again."""
        if self._is_paused and not self._at_eof and not self._is_closing:
            self._is_paused = False
            self._loop.add_reader(self._descriptor, self._readable)

    # ── writing

    def write(self, data: bytes) -> None:
        """Send, at once where the kernel takes it."""
        if self._is_closing or self._ends or not data:
            return
        sent = 0
        if not self._left:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._lose(error)
                return
            if sent == len(data):
                return
        self._keep([memoryview(data)[sent:]])

    def writelines(self, pieces: Sequence[Any]) -> None:
        """Send several pieces, one after the other."""
        if self._is_closing or self._ends:
            return
        views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        if not self._left:
            try:
                sent = self._socket.sendmsg(views[:_MOST_PIECES])
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            views = _rest(views, sent)
        if views:
            self._keep(views)

    def _keep(self, views: List[memoryview]) -> None:
        was_empty = not self._left
        self._left.extend(views)
        if was_empty:
            self._loop.add_writer(self._descriptor, self._writable)
            self._heard.pause_writing()

    def _writable(self) -> None:
        try:
            sent = self._socket.sendmsg(self._left[:_MOST_PIECES])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        self._left = _rest(self._left, sent)
        if self._left:
            return
        self._loop.remove_writer(self._descriptor)
        if self._is_closing:
            self._part(None)
            return
        if self._ends:
            self._shut()
        self._heard.resume_writing()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the kernel did not take yet."""
        return sum(map(len, self._left))

    def write_eof(self) -> None:
        """Say that no more will be sent, after what was written."""
        if not self._ends and not self._is_closing:
            self._ends = True
            if not self._left:
                self._shut()

    def _shut(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    # ── the end

    def is_closing(self) -> bool:
        """Whether the wire is at its end."""
        return self._is_closing

    def close(self) -> None:
        """Send what is left and close; nothing more is read."""
        if self._is_closing:
            return
        self._is_closing = True
        self._loop.remove_reader(self._descriptor)
        if not self._left:
            self._part(None)

    def abort(self) -> None:
        """Close at once."""
        self._lose(None)

    def get_extra_info(self, name: str) -> Any:
        """Return the socket by its name."""
        return self._socket if name == "socket" else None

    def _lose(self, error: Optional[BaseException]) -> None:
        self._is_closing = True
        self._loop.remove_reader(self._descriptor)
        if self._left:
            self._loop.remove_writer(self._descriptor)
            self._left = []
        self._part(error)

    def _part(self, error: Optional[BaseException]) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._loop.call_soon(self._end, error)

    def _end(self, error: Optional[BaseException]) -> None:
        try:
            self._heard.connection_lost(error)
        finally:
            self._socket.close()


def _rest(views: List[memoryview], sent: int) -> List[memoryview]:
    """Return what is left after so many bytes."""
    for place, view in enumerate(views):
        if sent < len(view):
            return [view[sent:], *views[place + 1 :]]
        sent -= len(view)
    return []
