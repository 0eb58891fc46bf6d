"""Checks how a zip is laid out before any entry is read: nothing overlaps, nothing is hidden.

Readers disagree about zips whose parts contradict each other, so such a zip is refused: what was
inspected would not be what another reader gets to see. Runs in the inspecting child too: standard
library only.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown

if TYPE_CHECKING:
    from server.artifacts.limits import Limits

UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)

_LOCAL = struct.Struct("<4s5H3L2H")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_TAIL_BYTES = 65535 + _END.size
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_DESCRIPTOR_FOLLOWS = 0x8
_IS_UTF8 = 0x800
_IN_ZIP64 = 0xFFFFFFFF
# With and without a signature, with sizes of 4 and of 8 bytes; some writers announce it in vain.
_DESCRIPTOR_BYTES = {0, 12, 16, 20, 24}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: what the directory says about it, and where its bytes begin."""

    info: zipfile.ZipInfo
    start: int


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the directory lies, and how many entries it says it has."""

    start: int
    end: int
    count: int


def entries_of(file: IO[bytes], limits: Limits) -> list[Entry]:
    """Return the entries of a zip, in the order of its directory.

    Raises:
        InspectionError: ``archive_damaged``, ``archive_truncated``, ``archive_multi_volume``,
            ``archive_too_many_entries``, ``archive_hidden_data``, ``archive_overlapping``,
            ``archive_encrypted``, ``archive_headers_differ``.
    """
    directory = _directory(file, limits)
    try:
        infos = zipfile.ZipFile(file).infolist()
    except UNREADABLE as error:
        raise InspectionError("archive_damaged", evidence=str(error)) from None
    if len(infos) > limits.entries:
        raise InspectionError("archive_too_many_entries", limit=limits.entries)
    if len(infos) != directory.count:
        raise InspectionError("archive_damaged", evidence="the directory's count is wrong")
    starts: dict[int, int] = {}
    position, gaps = 0, {0}
    for info in sorted(infos, key=lambda info: info.header_offset):
        _check_position(info.header_offset, position, gaps, shown(info.orig_filename))
        start, gaps = _local_header(file, info)
        starts[info.header_offset] = start
        position = start + info.compress_size
        if position > directory.start:
            raise InspectionError("archive_overlapping", name=shown(info.orig_filename))
    if directory.start - position not in gaps:
        raise _hidden(position)
    return [Entry(info, starts[info.header_offset]) for info in infos]


def _check_position(found: int, expected: int, gaps: set[int], name: str) -> None:
    if found < expected:
        raise InspectionError("archive_overlapping", name=name)
    if found - expected not in gaps:
        raise _hidden(expected)


def _hidden(at: int) -> InspectionError:
    return InspectionError("archive_hidden_data", evidence=f"byte {at}")


def _local_header(file: IO[bytes], info: zipfile.ZipInfo) -> tuple[int, set[int]]:
    """Return where an entry's bytes begin, and what may lie between them and the next entry."""
    name = shown(info.orig_filename)
    file.seek(info.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise InspectionError("archive_damaged", evidence=f"{name}: no header")
    _, _, flags, method, _, _, checksum, packed, size, name_bytes, extra = _LOCAL.unpack(header)
    if (flags | info.flag_bits) & _ENCRYPTED:
        raise InspectionError("archive_encrypted", name=name)
    written = file.read(name_bytes).decode("utf-8" if flags & _IS_UTF8 else "cp437", "replace")
    told = (info.CRC, info.compress_size, info.file_size)
    may_lack = {0, _IN_ZIP64} if flags & _DESCRIPTOR_FOLLOWS else {_IN_ZIP64}
    differs = any(
        value != wanted and value not in may_lack
        for value, wanted in zip((checksum, packed, size), told, strict=True)
    )
    if differs or written != info.orig_filename or method != info.compress_type:
        raise InspectionError("archive_headers_differ", name=name)
    gaps = _DESCRIPTOR_BYTES if flags & _DESCRIPTOR_FOLLOWS else {0}
    return info.header_offset + _LOCAL.size + name_bytes + extra, gaps


def _directory(file: IO[bytes], limits: Limits) -> _Directory:
    """Find the directory, before anything makes an object per entry of it."""
    size = file.seek(0, 2)
    file.seek(max(size - _TAIL_BYTES, 0))
    tail = file.read(_TAIL_BYTES)
    at = len(tail) - _END.size
    if at < 0 or tail[at : at + 4] != b"PK\x05\x06" or tail[-2:] != b"\x00\x00":
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise InspectionError("archive_truncated")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    end = size - len(tail) + at
    if at + _END.size + comment != len(tail):
        raise _hidden(min(end + _END.size + comment, size))
    # Readers prefer the zip64 record wherever there is one, whatever the short one says.
    larger = _directory64(file, end)
    if larger is not None:
        count, length, end = larger
    elif count == 0xFFFF or _IN_ZIP64 in {length, start}:
        raise InspectionError("archive_damaged", evidence="no end of the zip64 directory")
    elif disk or first_disk or here != count:
        raise InspectionError("archive_multi_volume")
    if count > limits.entries:
        raise InspectionError("archive_too_many_entries", limit=limits.entries)
    if length > limits.directory_bytes or end - length < 0:
        raise InspectionError("archive_damaged", evidence="the directory is too long")
    return _Directory(int(end - length), int(end), int(count))


def _directory64(file: IO[bytes], end: int) -> tuple[int, int, int] | None:
    """Read the zip64 records that stand before the end record, if there are any."""
    try:
        file.seek(end - _LOCATOR.size)
        magic, _, _, disks = _LOCATOR.unpack(file.read(_LOCATOR.size))
        file.seek(end - _LOCATOR.size - _END64.size)
        magic64, _, _, _, disk, first, here, count, length, _ = _END64.unpack(
            file.read(_END64.size)
        )
    except (struct.error, ValueError, OSError):
        return None
    if (magic, magic64) != (b"PK\x06\x07", b"PK\x06\x06"):
        return None
    if disks > 1 or disk or first or here != count:
        raise InspectionError("archive_multi_volume")
    return count, length, end - _LOCATOR.size - _END64.size
