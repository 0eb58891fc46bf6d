"""An incremental parser of multipart/form-data bodies (RFC 7578) that copies nearly nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote

MAX_PARTS = 64
MAX_HEADER_BYTES = 8192
MAX_PADDING_BYTES = 256

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_PARAMETER = re.compile(
    r'[ \t]*;[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s";]*))'
)


class FormError(ValueError):
    """The body is no well-formed multipart form."""


@dataclass(frozen=True, slots=True)
class PartHead:
    """A part begins. ``file_name`` is ``None`` where the part is a plain field."""

    name: str
    file_name: str | None


class PartEnd(Enum):
    """A part ends."""

    END = auto()


END = PartEnd.END
Event = PartHead | PartEnd | bytes


class _State(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()
    HEADERS = auto()
    CONTENT = auto()
    EPILOGUE = auto()


class FormParser:
    """Turns pieces of a body, cut anywhere, into heads, contents and ends of parts.

    A piece without a boundary is passed on as it came. What is held back between two pieces is
    at most one header block.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # The first delimiter has no line before it.
        self._held = b"\r\n"
        self._state = _State.PREAMBLE
        self._parts = 0

    @property
    def is_closed(self) -> bool:
        """Whether the closing delimiter was seen; whatever follows is ignored."""
        return self._state is _State.EPILOGUE

    def feed(self, data: bytes) -> list[Event]:
        """Take the next piece and return what is known by it. Raises ``FormError``."""
        if self._state is _State.EPILOGUE:
            return []
        if self._held:
            data = self._held + data
            self._held = b""
        events: list[Event] = []
        position = 0
        while position >= 0:
            position = self._step(data, position, events)
        return events

    def _step(self, data: bytes, position: int, events: list[Event]) -> int:
        """Go on from ``position``; return the next one, or -1 when more bytes are needed."""
        if self._state is _State.DELIMITER:
            return self._after_delimiter(data, position)
        if self._state is _State.HEADERS:
            return self._headers(data, position, events)
        if self._state is _State.EPILOGUE:
            return -1
        return self._content(data, position, events)

    def _content(self, data: bytes, position: int, events: list[Event]) -> int:
        is_content = self._state is _State.CONTENT
        found = data.find(self._delimiter, position)
        stop = found if found >= 0 else self._beginning_of_delimiter(data, position)
        if is_content and stop > position:
            events.append(data[position:stop])
        if found < 0:
            self._held = data[stop:]
            return -1
        if is_content:
            events.append(END)
        self._state = _State.DELIMITER
        return found + len(self._delimiter)

    def _beginning_of_delimiter(self, data: bytes, position: int) -> int:
        """Return where a delimiter may begin whose rest is still to come, or the end."""
        # A boundary holds no CR, so only the last one can begin the delimiter.
        start = max(position, len(data) - len(self._delimiter) + 1)
        found = data.rfind(b"\r", start)
        if found >= 0 and self._delimiter.startswith(data[found:]):
            return found
        return len(data)

    def _after_delimiter(self, data: bytes, position: int) -> int:
        if data.startswith(b"--", position):
            self._state = _State.EPILOGUE
            return -1
        end = data.find(b"\r\n", position)
        padding = data[position:] if end < 0 else data[position:end]
        if end < 0 and len(padding) <= MAX_PADDING_BYTES and padding.strip(b" \t\r") in {b"", b"-"}:
            self._held = padding
            return -1
        if end < 0 or padding.strip(b" \t"):
            raise FormError("something follows a boundary on its line")
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise FormError("too many parts")
        self._state = _State.HEADERS
        return end + 2

    def _headers(self, data: bytes, position: int, events: list[Event]) -> int:
        if data.startswith(b"\r\n", position):
            raise FormError("a part without headers")
        end = data.find(b"\r\n\r\n", position, position + MAX_HEADER_BYTES)
        if end < 0:
            if len(data) - position >= MAX_HEADER_BYTES:
                raise FormError("the headers of a part are too large")
            self._held = data[position:]
            return -1
        events.append(_head(data[position:end].decode("utf-8", "replace")))
        self._state = _State.CONTENT
        return end + 4


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary of a multipart Content-Type, or ``None`` where there is no valid one."""
    start = content_type.find(";")
    if start < 0:
        return None
    try:
        boundary = _parameters(content_type, start).get("boundary", "")
    except FormError:
        return None
    return boundary.encode() if _BOUNDARY.fullmatch(boundary) else None


def shown_name(file_name: str) -> str:
    """Return a file name fit to be shown: no folders, no control characters, 255 at most."""
    name = re.split(r"[/\\]", file_name)[-1]
    name = "".join(letter for letter in name if letter.isprintable()).strip()
    return name[:255] or "artifact"


def _head(text: str) -> PartHead:
    headers: dict[str, str] = {}
    for line in text.split("\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None or headers.setdefault(match[1].lower(), match[2]) != match[2]:
            raise FormError("a malformed header of a part")
    encoding = headers.get("content-transfer-encoding", "binary").lower()
    if encoding not in {"7bit", "8bit", "binary"}:
        raise FormError("an encoded part")
    disposition = headers.get("content-disposition", "")
    kind, semicolon, _ = disposition.partition(";")
    if kind.strip().lower() != "form-data" or not semicolon:
        raise FormError("a part that is no form field")
    parameters = _parameters(disposition, len(kind))
    if "name" not in parameters:
        raise FormError("a field without a name")
    return PartHead(parameters["name"], _file_name(parameters))


def _file_name(parameters: dict[str, str]) -> str | None:
    extended = re.fullmatch(r"(?i)utf-8'[^']*'(.*)", parameters.get("filename*", ""))
    if extended is not None:
        return unquote(extended[1])
    name = parameters.get("filename")
    return None if name is None else name.replace("%22", '"')


def _parameters(text: str, position: int) -> dict[str, str]:
    parameters: dict[str, str] = {}
    while text[position:].strip(" \t;"):
        match = _PARAMETER.match(text, position)
        if match is None:
            raise FormError("a malformed header parameter")
        value = match[3] if match[2] is None else re.sub(r'\\(["\\])', r"\1", match[2])
        parameters.setdefault(match[1].lower(), value)
        position = match.end()
    return parameters
