"""Limits of what an archive may hold, counted on real bytes while it is read.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from server.artifacts.failures import InspectionError

_MEBIBYTE = 1024**2
_DRIVE = re.compile(r"[A-Za-z]:")
_NAME_BYTES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an archive may hold; sizes in bytes.

    ``ratio`` is unpacked to packed bytes; it is not looked at below ``ratio_floor_bytes``, since
    the padding of a tiny archive alone can exceed it.
    """

    entries: int = 10_000
    depth: int = 8
    total_bytes: int = 2 * 1024**3
    ratio: int = 100
    ratio_floor_bytes: int = 4 * _MEBIBYTE
    directory_bytes: int = 16 * _MEBIBYTE


class Meter:
    """Counts what really comes out of one archive or compressed file."""

    def __init__(self, packed_bytes: int, limits: Limits) -> None:
        self._limits = limits
        self._packed_bytes = max(packed_bytes, 1)
        self._entries = 0
        self._bytes = 0

    @property
    def limits(self) -> Limits:
        """What is allowed."""
        return self._limits

    def count_entry(self) -> None:
        """Count one entry.

        Raises:
            InspectionError: ``archive_too_many_entries``.
        """
        self._entries += 1
        if self._entries > self._limits.entries:
            raise InspectionError("archive_too_many_entries", limit=self._limits.entries)

    def count_bytes(self, count: int) -> None:
        """Count bytes that came out.

        Raises:
            InspectionError: ``archive_too_large`` or ``archive_ratio``.
        """
        self._bytes += count
        if self._bytes > self._limits.total_bytes:
            raise InspectionError(
                "archive_too_large", limit_mb=self._limits.total_bytes // _MEBIBYTE
            )
        if (
            self._bytes > self._limits.ratio_floor_bytes
            and self._bytes > self._packed_bytes * self._limits.ratio
        ):
            raise InspectionError("archive_ratio", limit=self._limits.ratio)


class Names:
    """The names of one archive: each safe, none twice, whatever the case of its letters."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._seen: set[str] = set()

    def admit(self, name: str, *, is_folder: bool) -> str:
        """Return the name in its plain form (``a/b``); empty for the archive's own root.

        Raises:
            InspectionError: ``archive_name_unsafe``, ``archive_too_deep`` or
                ``archive_name_repeated``.
        """
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if self._is_unsafe(name, parts):
            raise InspectionError("archive_name_unsafe", name=shown(name))
        if len(parts) > self._depth:
            raise InspectionError("archive_too_deep", name=shown(name), limit=self._depth)
        plain = "/".join(parts)
        if is_folder or not plain:
            return plain
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", plain).casefold())
        if key in self._seen:
            raise InspectionError("archive_name_repeated", name=shown(name))
        self._seen.add(key)
        return plain

    @staticmethod
    def _is_unsafe(name: str, parts: list[str]) -> bool:
        return (
            name.startswith("/")
            or "\\" in name
            or any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
            or ".." in parts
            or _DRIVE.match(name) is not None
            or any(len(part.encode(errors="replace")) > _NAME_BYTES for part in parts)
        )


def shown(name: str) -> str:
    """Return a name of the archive fit for a message: printable and short."""
    text = "".join(letter if letter.isprintable() else "?" for letter in name)
    return text if len(text) <= 100 else "…" + text[-99:]
