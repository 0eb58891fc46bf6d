"""Reads zip archives member by member: nothing overlaps, nothing is hidden, every CRC matches.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.artifacts.limits import Limits, Meter

CHUNK_BYTES = 256 * 1024

_LOCAL = struct.Struct("<4s5H3L2H")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_TAIL_BYTES = 65535 + _END.size
_ENCRYPTED = 0x1 | 0x40 | 0x2000
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive, its name as it stands there; ``chunks`` gives its bytes once."""

    name: str
    is_folder: bool
    chunks: Callable[[], Iterator[bytes]]


def open_zip(file: IO[bytes], limits: Limits) -> zipfile.ZipFile:
    """Open a zip whose directory is of a sane size and whose entries lie side by side.

    Raises:
        InspectionError: ``archive_damaged``, ``archive_too_many_entries``,
            ``archive_overlapping``, ``archive_encrypted``.
    """
    start = _check_directory(file, limits)
    try:
        archive = zipfile.ZipFile(file)
    except UNREADABLE as error:
        raise InspectionError("archive_damaged", evidence=str(error)) from None
    if len(archive.infolist()) > limits.entries:
        raise InspectionError("archive_too_many_entries", limit=limits.entries)
    _check_spans(file, archive, start)
    return archive


def zip_members(archive: zipfile.ZipFile, meter: Meter) -> Iterator[Member]:
    """Yield the members; links, devices and encrypted entries end it by name.

    Raises:
        InspectionError: the archive breaks a rule or a limit.
    """
    for info in archive.infolist():
        meter.count_entry()
        _check_kind(info)
        yield Member(
            # zipfile cuts a name at a NUL; what stood there is judged instead.
            name=info.orig_filename,
            is_folder=info.is_dir(),
            chunks=lambda info=info: _chunks(archive, info, meter),  # type: ignore[misc]
        )


def check_bytes(archive: zipfile.ZipFile, meter: Meter) -> None:
    """Read every entry once, so that a damaged file is named here and not while loading.

    Raises:
        InspectionError: the archive breaks a rule or a limit.
    """
    for member in zip_members(archive, meter):
        for _ in member.chunks():
            pass


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, meter: Meter) -> Iterator[bytes]:
    count = 0
    try:
        with archive.open(info) as source:
            while chunk := source.read(CHUNK_BYTES):
                count += len(chunk)
                meter.count_bytes(len(chunk))
                yield chunk
    except UNREADABLE as error:
        raise InspectionError(
            "archive_damaged", evidence=f"{shown(info.filename)}: {error}"
        ) from None
    if count != info.file_size:
        raise InspectionError("archive_damaged", evidence=f"{shown(info.filename)}: wrong size")


def _check_kind(info: zipfile.ZipInfo) -> None:
    name = shown(info.filename)
    mode = info.external_attr >> 16
    if info.flag_bits & _ENCRYPTED:
        raise InspectionError("archive_encrypted", name=name)
    if stat.S_ISLNK(mode):
        raise InspectionError("archive_link_refused", name=name)
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise InspectionError("archive_special_refused", name=name)
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise InspectionError("archive_method_unsupported", name=name)


def _check_directory(file: IO[bytes], limits: Limits) -> int:
    """Return where the directory begins, before anything makes an object per entry of it."""
    size = file.seek(0, 2)
    file.seek(max(size - _TAIL_BYTES, 0))
    tail = file.read(_TAIL_BYTES)
    at = len(tail) - _END.size
    if at < 0 or tail[at : at + 4] != b"PK\x05\x06" or tail[-2:] != b"\x00\x00":
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise InspectionError("archive_damaged", evidence="no end of the directory")
    _, _, _, _, count, length, start, _ = _END.unpack_from(tail, at)
    end = size - len(tail) + at
    # Readers prefer the zip64 record wherever there is one, whatever the short one says.
    larger = _directory64(file, end)
    if larger is not None:
        count, length, end = larger
    elif count == 0xFFFF or 0xFFFFFFFF in {length, start}:
        raise InspectionError("archive_damaged", evidence="no end of the zip64 directory")
    if count > limits.entries:
        raise InspectionError("archive_too_many_entries", limit=limits.entries)
    if length > limits.directory_bytes or end - length < 0:
        raise InspectionError("archive_damaged", evidence="the directory is too long")
    return int(end - length)


def _directory64(file: IO[bytes], end: int) -> tuple[int, int, int] | None:
    """Read the zip64 records that stand before the end record, if there are any."""
    try:
        file.seek(end - _LOCATOR.size)
        magic, _, _, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
        file.seek(end - _LOCATOR.size - _END64.size)
        magic64, *_, count, length, _ = _END64.unpack(file.read(_END64.size))
    except (struct.error, ValueError, OSError):
        return None
    if (magic, magic64) != (b"PK\x06\x07", b"PK\x06\x06"):
        return None
    return count, length, end - _LOCATOR.size - _END64.size


def _check_spans(file: IO[bytes], archive: zipfile.ZipFile, directory: int) -> None:
    """Refuse entries that share bytes with each other or with the directory."""
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = shown(info.filename)
        if info.header_offset < end:
            raise InspectionError("archive_overlapping", name=name)
        file.seek(info.header_offset)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
            raise InspectionError("archive_damaged", evidence=f"{name}: no header")
        flags = _LOCAL.unpack(header)[2]
        if flags & _ENCRYPTED:
            raise InspectionError("archive_encrypted", name=name)
        name_length, extra_length = _LOCAL.unpack(header)[9:11]
        end = info.header_offset + _LOCAL.size + name_length + extra_length + info.compress_size
        if end > directory:
            raise InspectionError("archive_overlapping", name=name)
