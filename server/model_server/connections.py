"""One client's connection: requests one after the other, answers in their order, deadlines."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import Any, Callable, Deque, Optional

from server.model_server.deadlines import (
    HEADER_SECONDS,
    KEEPALIVE_SECONDS,
    LINGER_SECONDS,
    WRITE_SECONDS,
    is_body_late,
    is_reader_gone,
)
from server.model_server.reading import KnownHeads, RequestReader
from server.model_server.refusals import Answers, Refusal
from server.model_server.requests import Handler, Heads, Request, Response
from server.model_server.sockets import unread

logger = logging.getLogger(__name__)

_MAX_PIPELINED = 16
_SMALL_BYTES = 64 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection:
    """Answers the requests that its reader makes of what arrives."""

    def __init__(
        self,
        handler: Handler,
        answers: Answers,
        heads: Heads,
        known: KnownHeads,
        *,
        joined: Callable[[Connection], None],
        left: Callable[[Connection], None],
    ) -> None:
        self.body_limit = handler.body_limit
        self.is_parting = False
        """Whether the client is to come again on another connection after its next answer."""
        self._handler = handler
        self._answers = answers
        self._heads = heads
        self._joined = joined
        self._left = left
        self._reader = RequestReader(self, known)
        self._transport: Any = None
        self._last = time.perf_counter()
        # The request being answered, and those that came before its answer.
        self._current: Optional[Request] = None
        self._status = 0
        self._waiting: Deque[Request] = deque()
        # Whether the handler knows of the request that is being read.
        self._is_judged = False
        self._refusal: Optional[Refusal] = None
        # Deaf: whatever still comes in is dropped.
        self._is_deaf = self._at_eof = self._is_writing = self._is_paused = False
        self._closes_at = 0.0
        self._left_at = (0.0, 0)

    # ── the transport's side

    def connection_made(self, transport: Any) -> None:
        """Join the connections that are open."""
        self._transport = transport
        self._joined(self)

    def connection_lost(self, exc: Optional[BaseException]) -> None:
        """Leave the connections that are open; what is under way has nobody to answer."""
        del exc
        self._transport = None
        self._left(self)
        self._drop_reading(None)
        for request in self._waiting:
            self._release(request)
        self._waiting.clear()
        if self._current is not None:
            # What is being predicted is finished when its answer comes, which then goes nowhere.
            if self._status:
                self._finish()
            else:
                self._handler.abandoned(self._current)

    def data_arrived(self, data: bytes, now: float, arrived: float) -> None:
        """Read requests; a request's clock starts with the arrival of its first byte."""
        if self._is_deaf:
            return
        reader = self._reader
        if reader.request is not None or data.lstrip(b"\r\n"):
            # Empty lines between requests keep nobody's connection.
            self._last = now
        try:
            reader.feed(data, now, arrived)
        except Refusal as refusal:
            if not self._is_deaf:
                self._refuse(refusal)
            return
        if reader.request is not None and not self._is_deaf:
            self._hold(reader.request)
        elif reader.is_over:
            self._is_deaf = True

    def eof_received(self) -> bool:
        """Let a client that has said everything still read its answers."""
        self._at_eof = True
        if self._reader.request is not None:
            self._transport.abort()
            return False
        if self._current is not None and not self._status:
            self._handler.abandoned(self._current)
        return self._current is not None or self._is_writing

    def pause_writing(self) -> None:
        """Note that the client has not taken all of the answer yet."""
        self._is_writing = True
        self._left_at = (time.perf_counter(), self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Go on once the client has taken the whole answer."""
        self._is_writing = False
        if self._current is not None and self._status:
            self._finish()
            self._advance()

    # ── the reader's side

    def whole_came(self, request: Request) -> None:
        """Take a request that came at once."""
        if self._current is None and not self._waiting:
            self._begin(request)
        else:
            self._wait(request)

    def head_came(self, request: Request) -> None:
        """Show a head to the handler before its body is read, if it is its turn."""
        # Deaf within one piece: what stands behind a rejected request is nobody's.
        if self._current is None and not self._waiting and not self._is_deaf:
            self._judge(request)

    def body_came(self, request: Request) -> None:
        """Handle the request, or let it wait for the answers before it."""
        if self._is_deaf:
            return
        if not self._is_judged:
            self._wait(request)
            return
        self._is_judged, self._current = False, request
        self._handler.handle(request)

    # ── requests on their way

    def _wait(self, request: Request) -> None:
        self._waiting.append(request)
        if len(self._waiting) > _MAX_PIPELINED:
            raise Refusal(400, "pipelining_too_deep", limit=_MAX_PIPELINED)
        if self._current is None:
            self._advance()
        elif not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _begin(self, request: Request) -> None:
        """Take up a request that is whole and that the handler does not know."""
        self._current = request
        response = self._handler.head(request)
        if response is None and b"expect" in request.head.headers:
            response = self._unexpected(request)
        if response is None:
            self._handler.handle(request)
        else:
            self.answer(request, response)

    def _judge(self, request: Request) -> None:
        """Show a head to the handler, and refuse the request or ask for its body."""
        self._is_judged = True
        response = self._handler.head(request) or self._unexpected(request)
        if response is not None:
            self._reject(request, response)
        elif b"expect" in request.head.headers and request.head.version != "1.0":
            self._transport.write(_CONTINUE)

    def _unexpected(self, request: Request) -> Optional[Response]:
        """Refuse an expectation that is not 100-continue."""
        expectation = request.head.header(b"expect")
        if expectation is None or request.head.version == "1.0":
            return None
        if expectation.strip().lower() == "100-continue":
            return None
        refusal = Refusal(417, "expectation_unsupported", found=expectation)
        response = self._answers.refuse(request.head, refusal)
        response.closes = True  # what stands behind it means the same however it came
        return response

    def _reject(self, request: Request, response: Response) -> None:
        """Answer a request whose body is not read to its end."""
        self._current = request
        self._is_judged, self._is_deaf = False, True
        self._reader.forget()
        response.closes = True
        self.answer(request, response)

    def _refuse(self, refusal: Refusal) -> None:
        """Refuse the request that is being read, or whatever it is that follows the last one."""
        request = self._reader.request
        if request is not None and self._is_judged:
            self._reject(request, self._answers.refuse(request.head, refusal))
            return
        self._is_deaf = True
        self._refusal = refusal
        self._drop_reading(refusal.status)
        if self._current is None and not self._waiting:
            self._say_refusal()

    def _drop_reading(self, status: Optional[int]) -> None:
        request = self._reader.request
        if request is None:
            return
        self._reader.forget()
        self._release(request)
        if self._is_judged:
            self._is_judged = False
            self._handler.finished(request, status)

    def _say_refusal(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None and self._transport is not None:
            self._write(self._answers.refuse(None, refusal), None)
            self._linger()

    def _hold(self, request: Request) -> None:
        """Hold room for a body that is not whole yet."""
        more = self._reader.size - request.held
        if more <= 0:
            return
        if self._handler.hold(more):
            request.held += more
        else:
            self._refuse(Refusal(503, "replica_overloaded", headers={"Retry-After": "1"}))

    def _release(self, request: Request) -> None:
        if request.held:
            self._handler.hold(-request.held)
            request.held = 0

    # ── answers

    def answer(self, request: Request, response: Response) -> None:
        """Write the answer of the request that is being answered; only the first one counts."""
        if request is not self._current or self._status:
            return
        self._status = response.status
        if self.is_parting or response.closes or self._at_eof or self._handler.is_leaving:
            request.keeps = False
        self._write(response, request)
        if self._is_writing:
            return
        self._finish()
        is_busy = self._waiting or self._refusal or self._reader.request
        if not request.keeps or is_busy or self._is_paused:
            self._advance()

    def _write(self, response: Response, request: Optional[Request]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        pieces = response.pieces
        length = len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))
        head = self._heads.written(response, length, request)
        if request is not None and request.head.method == "HEAD":
            transport.write(head)
        elif length <= _SMALL_BYTES:
            transport.write(b"".join((head, *pieces)))
        else:
            transport.writelines((head, *pieces))

    def _finish(self) -> None:
        request, status = self._current, self._status
        self._current, self._status = None, 0
        if request is None:
            return
        if request.held:
            self._release(request)
        self._handler.finished(request, status)
        if not request.keeps:
            self._closes_at = time.perf_counter()

    def _advance(self) -> None:
        """Go on after an answer: close, or take up what came in the meantime."""
        if self._closes_at:
            self._close()
            return
        while self._waiting and self._current is None and not self._closes_at:
            self._begin(self._waiting.popleft())
        if self._current is not None or self._transport is None:
            return
        if self._refusal is not None:
            self._say_refusal()
            return
        request = self._reader.request
        if request is not None and not self._is_judged:
            self._judge(request)
        if self._is_paused and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()

    def _close(self) -> None:
        if self._transport is None:
            return
        self._waiting.clear()
        self._refusal = None
        if self._is_deaf:
            self._linger()
        else:
            self._is_deaf = True
            self._transport.close()

    def _linger(self) -> None:
        """Give a client that still sends the time to read why it was refused."""
        self._is_deaf = True
        if self._is_paused:
            # What it sent has to be read, so that its end is seen and it is not reset.
            self._is_paused = False
            self._transport.resume_reading()
        self._closes_at = time.perf_counter()
        if self._at_eof or self._transport.is_closing():
            self._transport.close()
        else:
            self._transport.write_eof()

    # ── the listener's side

    def sweep(self, now: float) -> None:
        """End what takes too long; ``now`` is in seconds of ``time.perf_counter``."""
        if self._transport is None:
            return
        if self._is_writing:
            self._watch_writing(now)
        elif self._closes_at:
            if now - self._closes_at > LINGER_SECONDS:
                self._transport.abort()
        elif self._current is None:
            self._watch_reading(now)

    def _watch_reading(self, now: float) -> None:
        reader = self._reader
        if reader.request is not None:
            if is_body_late(now, reader.began, self._last, reader.size):
                self._refuse(Refusal(408, "request_too_slow"))
        elif reader.in_head:
            if now - reader.began > HEADER_SECONDS:
                self._refuse(Refusal(408, "request_too_slow"))
        elif now - self._last > KEEPALIVE_SECONDS:
            self._transport.close()

    def _watch_writing(self, now: float) -> None:
        since, before = self._left_at
        if now - since < WRITE_SECONDS:
            return
        left = self._transport.get_write_buffer_size()
        self._left_at = (now, left)
        if is_reader_gone(now, since, before, left):
            self._transport.abort()

    @property
    def waits_since(self) -> Optional[float]:
        """When it fell silent; None while a request is under way, and once it is closed."""
        is_busy = self._reader.request or self._current or self._waiting or self._is_writing
        is_open = self._transport is not None and not self._transport.is_closing()
        return self._last if is_open and not is_busy else None

    def close_idle(self) -> None:
        """Close the connection unless a request is under way or already waits to be read."""
        if self.waits_since is None or self._reader.in_head or unread(self._descriptor()):
            return
        self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def cut_off(self, response: Response) -> None:
        """Answer past the event loop, which hangs; for another thread, just before the end."""
        if self._current is None or self._status:
            return
        head = self._heads.written(response, sum(map(len, response.pieces)), None)
        try:
            os.write(self._descriptor(), b"".join((head, *response.pieces)))
        except OSError:
            logger.debug("a client could not be told of the end", exc_info=True)

    def _descriptor(self) -> int:
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return -1 if sock is None else int(sock.fileno())
