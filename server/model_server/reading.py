"""Makes requests of bytes with httptools: strict, and bounded in every size.

The parser (llhttp, without its lenient flags) refuses malformed heads and framing; what is
checked here is what it leaves open: sizes, ``Transfer-Encoding`` other than ``chunked``, a
missing ``Host``. Source: RFC 9112.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, NoReturn, Optional, Protocol

import httptools

from server.model_server.refusals import Refusal
from server.model_server.requests import Head, Request

MAX_HEAD_BYTES = 16 * 1024
_FRAMING_BYTES = 64 * 1024
"""What chunk heads, extensions and trailers may cost beside a body's own bytes."""
_KNOWN_HEADS = 256
_KNOWN_BYTES = 2048
_END = b"\r\n\r\n"
_HOST = re.compile(rb"([\w.~%!$&'()*+;=-]*|\[[\w.~%:-]+\])(:\d*)?", re.ASCII)
"""RFC 9112, section 3.2, and RFC 3986; a second field would stand behind a comma."""


class Sink(Protocol):
    """Who the requests are for."""

    body_limit: int
    """Largest body, in bytes."""

    def head_came(self, request: Request) -> None:
        """Take note of a request whose body is still to come."""

    def body_came(self, request: Request) -> None:
        """Take a request that is whole."""

    def whole_came(self, request: Request) -> None:
        """Take a request that came at once."""


class KnownHeads:
    """Heads that were parsed before, by their bytes.

    A client that keeps its connection sends the same head again and again, and equal bytes at
    the start of a message have an equal meaning: there is no need to parse them twice.
    """

    def __init__(self) -> None:
        self._heads: Dict[bytes, Head] = {}
        self.get = self._heads.get

    def add(self, data: bytes, head: Head) -> None:
        """Keep the head of a message that came whole, if it is likely to come again."""
        headers = head.headers
        plain = head.keeps and b"transfer-encoding" not in headers and b"expect" not in headers
        size = len(data) - head.length
        if plain and size <= _KNOWN_BYTES and b"x-request-id" not in headers:
            if len(self._heads) >= _KNOWN_HEADS:
                self._heads.clear()
            self._heads[data[:size]] = head


class RequestReader:
    """Reads the requests of one connection, one after the other.

    ``request`` is the one whose body is being read; ``in_head`` is true within a head, and
    ``began`` says when reading that began, in seconds of ``time.perf_counter``.
    """

    def __init__(self, sink: Sink, known: KnownHeads) -> None:
        self._sink = sink
        self._known = known
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: Dict[bytes, bytes] = {}
        self._pieces: List[bytes] = []
        self._raw = self._arrived = 0
        self._now = self._came = self._first = 0.0
        self._refusal: Optional[Refusal] = None
        self._last_head: Optional[Head] = None
        self.request: Optional[Request] = None
        self.in_head = False
        self.began = 0.0
        self.size = 0
        """How much of the body has come, in bytes."""
        self.is_over = False
        """Whether nothing more can be read: another protocol would begin."""

    def feed(self, data: bytes, now: float, arrived: float) -> None:
        """Read what is there ``now`` and had ``arrived`` before; times of ``time.perf_counter``.

        Raises:
            Refusal: it is not what HTTP allows, or too much of it.
        """
        is_start = not self._raw and self.request is None and not self.in_head
        if is_start:
            end = data.find(_END) + 4
            head = self._known.get(data[:end])
            if head is not None and len(data) - end == head.length:
                self._sink.whole_came(Request(head, arrived, self._sink, data[end:]))
                return
        self._now = now
        self._came = arrived
        self._arrived = len(data)
        self._raw += self._arrived
        self._last_head = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # RFC 9110 lets us ignore the wish, but the parser goes no further.
            self.is_over = True
        except httptools.HttpParserError:
            raise self._refusal or Refusal(400, "request_malformed") from None
        self._bound()
        if is_start:
            self._remember(data)

    def forget(self) -> None:
        """Drop what was read of a body."""
        self._pieces = []
        self.request = None

    def _remember(self, data: bytes) -> None:
        """Keep the head of what was one whole message."""
        head = self._last_head
        if head is not None and data.find(_END) + 4 == len(data) - head.length:
            self._known.add(data, head)

    def _bound(self) -> None:
        if self.request is None:
            if self._raw > MAX_HEAD_BYTES:
                raise _head_too_large()
        elif self._raw - self.size > _FRAMING_BYTES + 8 * self.size:
            raise Refusal(400, "request_malformed")

    # ── called by the parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.in_head = True
        self.began = self._now
        self._first = self._came
        self._url = b""
        self._headers = {}

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer, which nobody looks at."""
        headers = self._headers
        name = name.lower()
        if name in headers:
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        """Judge a head before its body is read."""
        parser = self._parser
        headers, self._headers = self._headers, {}
        self.in_head = False
        upgrades = parser.should_upgrade()
        head = Head(
            parser.get_method().decode("ascii"),
            self._url.decode("latin-1"),
            parser.get_http_version(),
            headers,
            parser.should_keep_alive() and not upgrades,
        )
        # What stood before it in one piece is not counted any more, so its size has to be.
        if max(self._raw, self._arrived) > MAX_HEAD_BYTES and _size_of(head) > MAX_HEAD_BYTES:
            self._give_up(_head_too_large())
        if not _is_well_framed(head) or (upgrades and head.has_body):
            self._give_up(Refusal(400, "request_malformed"))
        self.request = Request(head, self._first, self._sink)
        self.size = 0
        # At most: a part of it was the head.
        self._raw = self._arrived
        self._sink.head_came(self.request)

    def on_body(self, piece: bytes) -> None:
        """Take a piece of a body within the limit."""
        if self.request is None:
            return
        self.size += len(piece)
        if self.size > self._sink.body_limit:
            self._give_up(Refusal(413, "request_too_large", limit=self._sink.body_limit))
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Hand the whole request over."""
        request = self.request
        if request is None:
            return
        self.request = None
        self._raw = 0
        self._last_head = request.head
        pieces = self._pieces
        if pieces:
            request.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces = []
        try:
            self._sink.body_came(request)
        except Refusal as refusal:
            self._give_up(refusal)

    def _give_up(self, refusal: Refusal) -> NoReturn:
        """Leave the parser, which ends with its own error wherever a callback raises."""
        self._refusal = refusal
        raise refusal


def _is_well_framed(head: Head) -> bool:
    """Check what the parser leaves open."""
    headers = head.headers
    host = headers.get(b"host")
    if host is not None and not _HOST.fullmatch(host):
        return False
    if head.version == "1.1":
        if host is None:
            return False
        encoding = headers.get(b"transfer-encoding")
        return encoding is None or encoding.lower() == b"chunked"
    return head.version == "1.0" and b"transfer-encoding" not in headers


def _size_of(head: Head) -> int:
    pairs: Any = head.headers.items()
    return len(head.path) + sum(len(name) + len(value) + 4 for name, value in pairs)


def _head_too_large() -> Refusal:
    return Refusal(431, "request_head_too_large", limit=MAX_HEAD_BYTES)
