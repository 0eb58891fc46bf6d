"""Reads tar archives member by member, plain or gzipped: regular files and folders only.

The standard library's reader is not used: its parsing was attacked again and again, and this
needs a tenth of it. Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.recognise import TAR_BLOCK, is_tar
from server.artifacts.zips import CHUNK_BYTES, Member

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.artifacts.limits import Meter

_HEADER_TEXT_BYTES = 64 * 1024
_REGULAR, _FOLDER = {b"0", b"\x00", b"7"}, {b"5"}
_LINKS = {b"1", b"2"}
_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL = b"L", b"K", b"x", b"g"


@dataclass(slots=True)
class _Pending:
    """What the headers before an entry said about it."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False


def tar_members(stream: IO[bytes], meter: Meter) -> Iterator[Member]:
    """Yield the members in their order; links, devices and sparse files end it by name.

    A member's bytes must be read, or are skipped, before the next one.

    Raises:
        InspectionError: the archive breaks a rule or a limit.
    """
    pending = _Pending()
    while (block := _block(stream, meter)) is not None:
        kind = block[156:157]
        size = _number(block[124:136])
        if kind in {_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL}:
            _read_header_text(stream, meter, kind, size, pending)
            continue
        name = pending.name if pending.name is not None else _name(block)
        if pending.size is not None:
            size = pending.size
        meter.count_entry()
        _check_kind(kind, name, is_sparse=pending.is_sparse)
        is_folder = kind in _FOLDER or (kind == b"\x00" and name.endswith("/"))
        reader = _Body(stream, meter, 0 if is_folder else size)
        yield Member(name=name, is_folder=is_folder, chunks=reader.chunks)
        reader.finish()
        pending = _Pending()
    while tail := stream.read(CHUNK_BYTES):
        meter.count_bytes(len(tail))


class _Body:
    """The bytes of one member and the padding after them."""

    def __init__(self, stream: IO[bytes], meter: Meter, size: int) -> None:
        self._stream = stream
        self._meter = meter
        self._left = size
        self._padding = -size % TAR_BLOCK

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            chunk = _exactly(self._stream, min(CHUNK_BYTES, self._left))
            self._meter.count_bytes(len(chunk))
            self._left -= len(chunk)
            yield chunk

    def finish(self) -> None:
        for _ in self.chunks():
            pass
        _exactly(self._stream, self._padding)


def _block(stream: IO[bytes], meter: Meter) -> bytes | None:
    """Return the next header, or None at the zeros that end the archive."""
    block = stream.read(TAR_BLOCK)
    meter.count_bytes(len(block))
    if not block or (len(block) == TAR_BLOCK and not block.strip(b"\x00")):
        return None
    if len(block) < TAR_BLOCK:
        raise InspectionError("archive_damaged", evidence="the end is missing")
    if not is_tar(block):
        raise InspectionError("archive_damaged", evidence="a tar header has a wrong checksum")
    return block


def _check_kind(kind: bytes, name: str, *, is_sparse: bool) -> None:
    if kind in _LINKS:
        raise InspectionError("archive_link_refused", name=shown(name))
    if is_sparse or kind not in _REGULAR | _FOLDER:
        raise InspectionError("archive_special_refused", name=shown(name))


def _read_header_text(
    stream: IO[bytes], meter: Meter, kind: bytes, size: int, pending: _Pending
) -> None:
    # Headers alone could go on for ever, so they count as entries too.
    meter.count_entry()
    if size > _HEADER_TEXT_BYTES:
        raise InspectionError("archive_damaged", evidence="a tar header is too long")
    text = _exactly(stream, size)
    _exactly(stream, -size % TAR_BLOCK)
    meter.count_bytes(size)
    if kind == _LONG_NAME:
        pending.name = _text(text.split(b"\x00", 1)[0])
    elif kind == _EXTENDED:
        _read_records(text, pending)


def _read_records(text: bytes, pending: _Pending) -> None:
    """Read pax records (``LENGTH KEY=VALUE`` and a line feed); most of them do not matter."""
    while text:
        length_text, separator, _ = text.partition(b" ")
        if not separator or not length_text.isdigit() or len(length_text) > 6:
            raise InspectionError("archive_damaged", evidence="a tar header is malformed")
        length = int(length_text)
        record = text[len(length_text) + 1 : length]
        if length > len(text) or not record.endswith(b"\n"):
            raise InspectionError("archive_damaged", evidence="a tar header is malformed")
        key, _, value = record[:-1].partition(b"=")
        if key == b"path":
            pending.name = _text(value)
        elif key == b"size" and value.isdigit() and len(value) < 20:
            pending.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            pending.is_sparse = True
        text = text[length:]


def _name(block: bytes) -> str:
    name = block[:100].split(b"\x00", 1)[0]
    prefix = block[345:500].split(b"\x00", 1)[0] if block[257:263] == b"ustar\x00" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _number(field: bytes) -> int:
    """Read a size: octal, or big-endian with the first bit set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        text = field.strip(b" \x00") or b"0"
        try:
            value = int(text, 8)
        except ValueError:
            raise InspectionError("archive_damaged", evidence="a size is malformed") from None
    if not 0 <= value < 1 << 62:
        raise InspectionError("archive_damaged", evidence="a size is malformed")
    return value


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise InspectionError("archive_damaged", evidence="the end is missing")
    return data
