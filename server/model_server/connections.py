"""Connections on an inherited listening socket: accepting that can stop, clients that stall."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import struct
import termios
from typing import Awaitable, Callable, Optional, Set

from aiohttp import web

from server.model_server.refusals import Answers, Refusal

logger = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
"""From the first byte of a request's head to its last."""
KEEPALIVE_SECONDS = 40.0
"""How long a silent connection is kept; gateways have to let go sooner."""
WRITE_CHECK_SECONDS = 15.0
WRITE_BYTES_PER_SECOND = 8192
MAX_CONNECTIONS = 512
_ACCEPTS_AT_ONCE = 16
_LINGER_SECONDS = 5.0
_RETRY_ACCEPT_SECONDS = 0.2
_FINISH_SECONDS = 1.0

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(web.RequestHandler):
    """One client's connection, with deadlines on what aiohttp waits for without end."""

    __slots__ = ("_answers", "_head_timer", "_joined", "_left", "_write_timer", "in_request")

    def __init__(
        self,
        server: web.Server,
        answers: Answers,
        *,
        joined: Callable[[Connection], None],
        left: Callable[[Connection], None],
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=None,  # type: ignore[arg-type]
            # A compressed body is refused by its header, never inflated.
            auto_decompress=False,
            lingering_time=_LINGER_SECONDS,
        )
        self._answers = answers
        self._joined = joined
        self._left = left
        self._head_timer: Optional[asyncio.TimerHandle] = None
        self._write_timer: Optional[asyncio.TimerHandle] = None
        self.in_request = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the connections that are open."""
        self._joined(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Optional[BaseException]) -> None:
        """Leave the connections that are open, and drop the timers."""
        self._left(self)
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the head's deadline at its first byte."""
        if self._head_timer is None and not self.in_request:
            self._head_timer = self._loop.call_later(HEADER_SECONDS, self._too_slow)
        super().data_received(data)

    def request_started(self) -> None:
        """Note that a whole head has arrived."""
        self.in_request = True
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def request_ended(self) -> None:
        """Note that the answer is written."""
        self.in_request = False
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def watch_writing(self) -> None:
        """Give the connection up if its client stops reading the answer."""
        self._write_timer = self._loop.call_later(WRITE_CHECK_SECONDS, self._check_writing, None)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: Optional[BaseException] = None,
        message: Optional[str] = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not read, in the form of every other error."""
        del message
        self._stop_timers()
        if isinstance(exc, ConnectionError) or getattr(request.writer, "output_size", 0) > 0:
            raise ConnectionError("nobody is left to be answered") from exc
        if status >= 500:
            logger.error("a request was not handled", exc_info=exc)
        code = "internal_error" if status >= 500 else "request_malformed"
        response = self._answers.refuse(request, Refusal(status, code))
        response.force_close()
        return response

    def close_idle(self) -> None:
        """Close the connection unless a request is under way or already waits to be read."""
        if self.in_request or self._head_timer is not None or self.transport is None:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and _unread(sock.fileno()):
            return
        self.force_close()

    def abort(self) -> None:
        """End the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.transport is None:
            return
        response = self._answers.refuse(None, Refusal(408, "request_too_slow"))
        body = response.body if isinstance(response.body, bytes) else b""
        head = (
            "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.force_close()

    def _check_writing(self, before: Optional[int]) -> None:
        if self.transport is None:
            return
        left = self.transport.get_write_buffer_size()
        if before is not None and left > before - WRITE_BYTES_PER_SECOND * WRITE_CHECK_SECONDS:
            self.abort()
            return
        self._write_timer = self._loop.call_later(WRITE_CHECK_SECONDS, self._check_writing, left)


def _unread(descriptor: int) -> int:
    """Count the bytes that have arrived and were not read yet."""
    if descriptor < 0:
        return 0
    count: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]
    return count


class Listener:
    """Accepts on an inherited socket that stays open in other processes.

    Stopping gives the connections that still come to those others; closing drops this
    process's own copy and leaves theirs alone.
    """

    def __init__(self, sock: socket.socket, answer: Answer, answers: Answers) -> None:
        self._socket = sock
        self._answers = answers
        self._server = web.Server(answer)
        self._loop = asyncio.get_running_loop()
        self._wanted = False
        self._reading = False
        self._open: Set[Connection] = set()
        self._adopting: Set[asyncio.Task[None]] = set()
        sock.setblocking(False)

    @property
    def is_accepting(self) -> bool:
        """Whether new connections are taken, or will be as soon as there is room."""
        return self._wanted

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._open) + len(self._adopting)

    def start(self) -> None:
        """Begin to accept; already doing so is success."""
        self._wanted = True
        self._poll()

    def stop(self) -> None:
        """Stop accepting and keep the socket."""
        self._wanted = False
        self._poll()

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
        for task in list(self._adopting):
            task.cancel()
        self.abort()
        await self._server.shutdown(_FINISH_SECONDS)

    def _poll(self) -> None:
        """Watch the socket while connections are wanted and there is room for them."""
        wanted = self._wanted and self.connections < MAX_CONNECTIONS
        if wanted and not self._reading:
            self._loop.add_reader(self._socket.fileno(), self._accept)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._socket.fileno())
        self._reading = wanted

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if not self._reading:
                return
            try:
                accepted, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptors or memory: the readable socket would wake us without end.
                logger.error("cannot accept: %s", error.strerror)  # noqa: TRY400
                self._loop.remove_reader(self._socket.fileno())
                self._reading = False
                self._loop.call_later(_RETRY_ACCEPT_SECONDS, self._changed)
                return
            task = self._loop.create_task(self._adopt(accepted))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)
            self._poll()

    def _changed(self) -> None:
        if self._socket.fileno() >= 0:
            self._poll()

    async def _adopt(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._connection, accepted)
        except OSError:
            accepted.close()

    def _connection(self) -> Connection:
        return Connection(self._server, self._answers, joined=self._open.add, left=self._leave)

    def _leave(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._changed()
