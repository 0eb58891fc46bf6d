"""What a connection hands to an application, and what it is handed back."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Dict, List, Mapping, Optional, Protocol, Tuple

SERVER = "persephone"
JSON = "application/json"
_NO_HEADERS: Mapping[str, str] = {}


class Head:
    """The head of a request: what its bytes mean, whatever connection they came on.

    ``headers`` has lower-case names; repeated ones are joined with ``", "``. ``target`` and
    ``era`` (when it was checked) are notes of the application, as lasting as the head itself.
    """

    __slots__ = (
        "era",
        "has_body",
        "headers",
        "keeps",
        "length",
        "method",
        "path",
        "target",
        "version",
    )

    def __init__(
        self, method: str, path: str, version: str, headers: Dict[bytes, bytes], keeps: bool
    ) -> None:
        self.method = method
        self.path = path
        self.version = version
        self.headers = headers
        self.keeps = keeps
        self.length = int(headers.get(b"content-length", b"0"))
        self.has_body = self.length > 0 or b"transfer-encoding" in headers
        self.target: Any = None
        self.era: Any = None

    def header(self, name: bytes) -> Optional[str]:
        """Return the value of a header by its lower-case name."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


class Request:
    """One request; ``body`` is there when it is handled.

    ``began`` is the ``time.perf_counter()`` at which its first byte arrived. ``connection`` answers it.
    """

    __slots__ = ("began", "body", "connection", "head", "held", "job", "keeps")

    def __init__(self, head: Head, began: float, connection: Any, body: bytes = b"") -> None:
        self.head = head
        self.began = began
        self.connection = connection
        self.body = body
        self.keeps = head.keeps
        # Bytes of memory that were taken for the body.
        self.held = 0
        # Its place among the predictions.
        self.job: Any = None

    def answer(self, response: Response) -> None:
        """Write the response; only the first one counts."""
        self.connection.answer(self, response)


class Response:
    """A status, headers and a body in pieces.

    ``closes`` ends the connection after it.
    """

    __slots__ = ("closes", "content_type", "headers", "pieces", "status")

    def __init__(
        self,
        status: int,
        pieces: Tuple[Any, ...],
        content_type: str = JSON,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        self.status = status
        self.pieces = pieces
        self.content_type = content_type
        self.headers = headers
        self.closes = False


class Handler(Protocol):
    """An application behind connections. Each ``head`` is followed by one ``finished``."""

    body_limit: int
    """Largest body, in bytes."""

    @property
    def is_leaving(self) -> bool:
        """Whether connections are to be closed after their answers."""

    def head(self, request: Request) -> Optional[Response]:
        """Look at a request's head; return a refusal, or None to have its body read."""

    def handle(self, request: Request) -> None:
        """Answer a request whose body is there, now or later, by ``request.answer``."""

    def finished(self, request: Request, status: Optional[int]) -> None:
        """Note the end of a request: its status, None if it got no answer."""

    def abandoned(self, request: Request) -> None:
        """Note that the client of an unanswered request has gone, or says nothing any more."""

    def hold(self, size: int) -> bool:
        """Take room for a body's bytes; False if there is none. Negative gives it back."""


class Heads:
    """Writes the heads of responses; what they share is written once a second.

    Source of the fields: RFC 9110, RFC 9112.
    """

    def __init__(self) -> None:
        self._starts: Dict[Tuple[int, str, bool], bytes] = {}
        self._date = formatdate(usegmt=True)

    def refresh(self) -> None:
        """Take the present time for the header ``Date``."""
        date = formatdate(usegmt=True)
        if date != self._date:
            self._date = date
            self._starts.clear()

    def written(self, response: Response, length: int, request: Optional[Request]) -> bytes:
        """Write a response's head, the empty line included.

        The connection is kept if the request says so; without one it is closed.
        """
        keeps = request is not None and request.keeps
        key = (response.status, response.content_type, keeps)
        start = self._starts.get(key)
        if start is None:
            start = self._starts[key] = self._start(*key)
        is_old = request is not None and keeps and request.head.version == "1.0"
        if not response.headers and not is_old:
            return b"%b%d\r\n\r\n" % (start, length)
        more = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        if is_old:
            more += "Connection: keep-alive\r\n"
        return b"%b%d\r\n%b\r\n" % (start, length, more.encode("latin-1", "replace"))

    def _start(self, status: int, content_type: str, keeps: bool) -> bytes:
        lines: List[str] = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"Server: {SERVER}",
            f"Date: {self._date}",
            f"Content-Type: {content_type}",
        ]
        if not keeps:
            lines.append("Connection: close")
        lines.append("Content-Length: ")
        return "\r\n".join(lines).encode("ascii")
