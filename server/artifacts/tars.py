"""Reads tar archives member by member, plain or gzipped: regular files and folders only.

The standard library's reader is not used: its parsing was attacked again and again, and this
needs a tenth of it. Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.recognise import TAR_BLOCK
from server.artifacts.tar_headers import (
    EXTENDED,
    GLOBAL,
    HEADER_TEXT_BYTES,
    LONG_LINK,
    LONG_NAME,
    Pending,
    checked,
    malformed,
    name_of,
    number_of,
)
from server.artifacts.zips import CHUNK_BYTES, Member

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.artifacts.limits import Meter

_REGULAR, _FOLDER = {b"0", b"\x00", b"7"}, {b"5"}
_LINKS = {b"1", b"2"}


def tar_members(stream: IO[bytes], meter: Meter) -> Iterator[Member]:
    """Yield the members in their order; links, devices and sparse files end it by name.

    A member's bytes must be read, or are skipped, before the next one.

    Raises:
        InspectionError: the archive breaks a rule or a limit.
    """
    pending = Pending()
    while (block := _block(stream, meter)) is not None:
        kind = block[156:157]
        if kind in {LONG_NAME, LONG_LINK, EXTENDED, GLOBAL}:
            text = _header_text(stream, meter, block)
            (Pending() if kind == GLOBAL else pending).take(kind, text)
            continue
        name = pending.name if pending.name is not None else name_of(block)
        size = pending.size_of(block)
        meter.count_entry()
        _check_kind(kind, name, is_sparse=pending.is_sparse)
        is_folder = kind in _FOLDER or (kind == b"\x00" and name.endswith("/"))
        if is_folder and size:
            raise InspectionError("archive_folder_with_content", name=shown(name))
        reader = _Body(stream, meter, size)
        yield Member(name=name, is_folder=is_folder, chunks=reader.chunks)
        reader.finish()
        pending = Pending()
    if not pending.is_empty:
        raise malformed("path")
    _check_end(stream, meter)


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
    return checked(block)


def _check_end(stream: IO[bytes], meter: Meter) -> None:
    """Read the zeros after the last entry; some readers would go on behind them."""
    while tail := stream.read(CHUNK_BYTES):
        meter.count_bytes(len(tail))
        if tail.strip(b"\x00"):
            raise InspectionError("archive_hidden_data", evidence="after the last entry")


def _check_kind(kind: bytes, name: str, *, is_sparse: bool) -> None:
    if kind in _LINKS:
        raise InspectionError("archive_link_refused", name=shown(name))
    if is_sparse or kind not in _REGULAR | _FOLDER:
        raise InspectionError("archive_special_refused", name=shown(name))


def _header_text(stream: IO[bytes], meter: Meter, block: bytes) -> bytes:
    # Headers alone could go on for ever, so they count as entries too.
    meter.count_entry()
    size = number_of(block[124:136], "size")
    if size > HEADER_TEXT_BYTES:
        raise malformed("size")
    text = _exactly(stream, size)
    _exactly(stream, -size % TAR_BLOCK)
    meter.count_bytes(size)
    return text


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise InspectionError("archive_truncated")
    return data
