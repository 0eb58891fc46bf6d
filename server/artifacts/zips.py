"""Reads zip archives member by member; every byte is counted and every CRC has to match.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.zip_structure import Entry, entries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.artifacts.limits import Limits, Meter

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive, its name as it stands there; ``chunks`` gives its bytes once."""

    name: str
    is_folder: bool
    chunks: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Zip:
    """A zip whose structure is sound; its entries are still to be read."""

    file: IO[bytes]
    entries: list[Entry]

    @property
    def names(self) -> list[str]:
        """Names of the entries, as they stand in the directory."""
        return [entry.info.orig_filename for entry in self.entries]

    def members(self, meter: Meter) -> Iterator[Member]:
        """Yield the members; links, devices and encrypted entries end it by name.

        Raises:
            InspectionError: the archive breaks a rule or a limit.
        """
        for entry in self.entries:
            meter.count_entry()
            _check_kind(entry.info)
            yield Member(
                # zipfile cuts a name at a NUL; what stood there is judged instead.
                name=entry.info.orig_filename,
                is_folder=entry.info.orig_filename.endswith("/"),
                chunks=lambda entry=entry: _chunks(self.file, entry, meter),  # type: ignore[misc]
            )


def open_zip(file: IO[bytes], limits: Limits) -> Zip:
    """Open a zip; its structure is checked, its entries are not read yet.

    Raises:
        InspectionError: the structure is not sound, for a cause that has a name.
    """
    return Zip(file, entries_of(file, limits))


def _chunks(file: IO[bytes], entry: Entry, meter: Meter) -> Iterator[bytes]:
    info, name = entry.info, shown(entry.info.orig_filename)
    raw = _raw(file, entry)
    count = checksum = 0
    for chunk in raw if info.compress_type == zipfile.ZIP_STORED else _inflated(raw, name):
        count += len(chunk)
        meter.count_bytes(len(chunk))
        if count > info.file_size:
            break
        checksum = zlib.crc32(chunk, checksum)
        yield chunk
    if count != info.file_size:
        raise InspectionError("archive_size_wrong", name=name)
    if checksum != info.CRC:
        raise InspectionError("archive_checksum_wrong", name=name)


def _raw(file: IO[bytes], entry: Entry) -> Iterator[bytes]:
    position, left = entry.start, entry.info.compress_size
    while left:
        # Somebody else may have read from the file in the meantime.
        file.seek(position)
        data = file.read(min(left, CHUNK_BYTES))
        if not data:
            raise InspectionError("archive_truncated")
        position += len(data)
        left -= len(data)
        yield data


def _inflated(raw: Iterator[bytes], name: str) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-15)
    try:
        for data in raw:
            left = data
            while left and not inflate.eof:
                if chunk := inflate.decompress(left, CHUNK_BYTES):
                    yield chunk
                left = inflate.unconsumed_tail
            if inflate.eof and (inflate.unused_data or left):
                raise InspectionError("archive_size_wrong", name=name)
        while chunk := inflate.decompress(b"", CHUNK_BYTES):
            yield chunk
    except zlib.error as error:
        raise InspectionError("archive_damaged", evidence=f"{name}: {error}") from None
    if not inflate.eof:
        raise InspectionError("archive_damaged", evidence=f"{name}: the end is missing")


def _check_kind(info: zipfile.ZipInfo) -> None:
    name = shown(info.orig_filename)
    mode = info.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise InspectionError("archive_link_refused", name=name)
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise InspectionError("archive_special_refused", name=name)
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise InspectionError("archive_method_unsupported", name=name)
    if info.orig_filename.endswith("/") and info.file_size:
        raise InspectionError("archive_folder_with_content", name=name)
    if info.orig_filename != info.filename:
        raise InspectionError("archive_name_unsafe", name=name)
