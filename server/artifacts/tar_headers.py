"""Reads the headers of a tar: the blocks themselves, and the extended ones before an entry.

Tools differ in what they make of headers that contradict each other, and whole files were hidden
that way; such headers are refused by the field that they are about. Runs in the inspecting child
too: standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.artifacts.failures import InspectionError
from server.artifacts.recognise import TAR_BLOCK, is_tar

LONG_NAME, LONG_LINK, EXTENDED, GLOBAL = b"L", b"K", b"x", b"g"
HEADER_TEXT_BYTES = 64 * 1024

_OCTAL = re.compile(rb"[0-7]{1,12}")
_LARGEST = 1 << 62
# What one pax header may say about all entries after it, without changing which bytes they are.
_ABOUT_BYTES = ("path", "linkpath", "size", "hdrcharset")


def malformed(field: str) -> InspectionError:
    """Return the failure for a header whose ``field`` is malformed or said twice."""
    return InspectionError("archive_tar_header", field=field)


@dataclass(slots=True)
class Pending:
    """What the headers before an entry said about it."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False
    is_empty: bool = True

    def take(self, kind: bytes, text: bytes) -> None:
        """Take an extended header in.

        Raises:
            InspectionError: ``archive_tar_header``.
        """
        self.is_empty = False
        if kind == LONG_NAME:
            self._rename(_until_nul(text))
        elif kind == LONG_LINK:
            _until_nul(text)
        else:
            for key, value in _records(text):
                self._record(key, value, is_global=kind == GLOBAL)

    def _record(self, key: bytes, value: bytes, *, is_global: bool) -> None:
        word = key.decode("ascii", "replace")
        if key.startswith(b"GNU.sparse."):
            self.is_sparse = True
        if is_global and (word in _ABOUT_BYTES or self.is_sparse):
            raise malformed(f"global {word}")
        if key == b"hdrcharset" and value not in {b"BINARY", b"ISO-IR 10646 2000 UTF-8"}:
            raise malformed("hdrcharset")
        if key == b"path":
            self._rename(value)
        elif key == b"size":
            if self.size is not None or not value.isdigit() or len(value) > 19:
                raise malformed("size")
            self.size = int(value)

    def _rename(self, name: bytes) -> None:
        if self.name is not None or not name:
            raise malformed("path")
        self.name = text_of(name)

    def size_of(self, block: bytes) -> int:
        """Return the entry's size in bytes.

        Raises:
            InspectionError: ``archive_tar_header`` if the two places for it differ.
        """
        size = number_of(block[124:136], "size")
        if self.size is None:
            return size
        if size not in {0, self.size}:
            raise malformed("size")
        return self.size


def checked(block: bytes) -> bytes:
    """Return a header block that is whole.

    Raises:
        InspectionError: ``archive_truncated`` or ``archive_tar_header``.
    """
    if len(block) < TAR_BLOCK:
        raise InspectionError("archive_truncated")
    if not is_tar(block):
        raise malformed("chksum")
    return block


def name_of(block: bytes) -> str:
    """Return the name that stands in a header block."""
    name = block[:100].split(b"\x00", 1)[0]
    prefix = block[345:500].split(b"\x00", 1)[0] if block[257:263] == b"ustar\x00" else b""
    return text_of(prefix + b"/" + name if prefix else name)


def text_of(data: bytes) -> str:
    """Decode a name; old archives were written in many encodings."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def number_of(field: bytes, name: str) -> int:
    """Read a number: octal, or big-endian with the first bit set.

    Raises:
        InspectionError: ``archive_tar_header``.
    """
    if field[0] & 0x80:
        # The bit below is the sign.
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        text = field.strip(b" \x00") or b"0"
        if not _OCTAL.fullmatch(text):
            raise malformed(name)
        value = int(text, 8)
    if value >= _LARGEST:
        raise malformed(name)
    return value


def _until_nul(text: bytes) -> bytes:
    name, _, rest = text.partition(b"\x00")
    if rest.strip(b"\x00"):
        raise malformed("path")
    return name


def _records(text: bytes) -> list[tuple[bytes, bytes]]:
    """Read pax records: ``LENGTH KEY=VALUE`` and a line feed, each."""
    records = []
    while text:
        digits, separator, _ = text.partition(b" ")
        if not separator or not digits.isdigit() or len(digits) > 6:
            raise malformed("pax")
        length = int(digits)
        record = text[len(digits) + 1 : length]
        key, equals, value = record[:-1].partition(b"=")
        if length > len(text) or not record.endswith(b"\n") or not equals or not key:
            raise malformed("pax")
        records.append((key, value))
        text = text[length:]
    return records
