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
_NOT_IN_NAMES = {"Cc", "Cs", "Zl", "Zp"}
# They turn what a person reads around: "model\u202egpj.exe".
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an archive may hold; sizes in bytes.

    ``ratio`` is unpacked to packed bytes; it is not looked at below ``ratio_floor_bytes``, since
    the padding of a tiny archive alone can exceed it.
    """

    entries: int = 10_000
    depth: int = 8
    model_depth: int = 32
    total_bytes: int = 2 * 1024**3
    ratio: int = 100
    ratio_floor_bytes: int = 4 * _MEBIBYTE
    directory_bytes: int = 16 * _MEBIBYTE
    name_bytes: int = 1024
    part_bytes: int = 255


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
    """The names of one archive: each safe, none twice, whatever the case of its letters.

    ``is_model`` is for the archive that a model's own file is: whoever wrote it chose the names
    for a reader that tells cases apart, and lays them deeper.
    """

    def __init__(self, limits: Limits, *, is_model: bool = False) -> None:
        self._limits = limits
        self._depth = limits.model_depth if is_model else limits.depth
        self._is_model = is_model
        self._seen: set[str] = set()

    def admit(self, name: str, *, is_folder: bool) -> str:
        """Return the name in its plain form (``a/b``); empty for the archive's own root.

        Raises:
            InspectionError: ``archive_name_unsafe``, ``archive_name_too_long``,
                ``archive_too_deep`` or ``archive_name_repeated``.
        """
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if self._is_unsafe(name, parts):
            raise InspectionError("archive_name_unsafe", name=shown(name))
        sizes = [len(part.encode(errors="replace")) for part in parts]
        if max(sizes, default=0) > self._limits.part_bytes or sum(sizes) > self._limits.name_bytes:
            raise InspectionError("archive_name_too_long", name=shown(name))
        if len(parts) > self._depth:
            raise InspectionError("archive_too_deep", name=shown(name), limit=self._depth)
        plain = "/".join(parts)
        if is_folder or not plain:
            return plain
        key = plain if self._is_model else _folded(plain)
        if key in self._seen:
            raise InspectionError("archive_name_repeated", name=shown(name))
        self._seen.add(key)
        return plain

    @staticmethod
    def _is_unsafe(name: str, parts: list[str]) -> bool:
        return (
            not name
            or name.startswith("/")
            or "\\" in name
            or any(unicodedata.category(letter) in _NOT_IN_NAMES for letter in name)
            or not _TURNING.isdisjoint(name)
            or ".." in parts
            or _DRIVE.match(name) is not None
        )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def shown(name: str) -> str:
    """Return a name of the archive fit for a message: printable and short."""
    text = "".join(letter if letter.isprintable() else "?" for letter in name)
    return text if len(text) <= 100 else "…" + text[-99:]
