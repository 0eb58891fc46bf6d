"""Reads compressed files as streams, bounded by a meter.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import io
import lzma
import zlib
from typing import IO, TYPE_CHECKING, Any

from server.artifacts.failures import InspectionError
from server.artifacts.recognise import decompressor

if TYPE_CHECKING:
    from server.artifacts.limits import Meter

_CHUNK_BYTES = 128 * 1024


def decompressed(kind: str, source: IO[bytes], meter: Meter | None = None) -> io.BufferedReader:
    """Return the bytes behind a compression as a stream; ``meter`` counts them, if given.

    Reading raises ``InspectionError`` with ``archive_damaged`` when the file is cut off, or the
    meter's codes.
    """
    return io.BufferedReader(_Inflating(kind, source, meter), _CHUNK_BYTES)


class _Inflating(io.RawIOBase):
    """One or more compressed streams, one after the other, as one."""

    def __init__(self, kind: str, source: IO[bytes], meter: Meter | None) -> None:
        self._kind = kind
        self._source = source
        self._meter = meter
        self._stream: Any = decompressor(kind)
        self._raw = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._next(len(buffer))
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise InspectionError("archive_damaged", evidence=str(error)) from None
        if self._meter is not None:
            self._meter.count_bytes(len(data))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, count: int) -> bytes:
        while True:
            if self._stream.eof:
                # gzip and its like may be several streams in a row.
                self._raw = self._stream.unused_data or self._source.read(_CHUNK_BYTES)
                if not self._raw.strip(b"\x00"):
                    return b""
                self._stream = decompressor(self._kind)
            at_end = False
            if not self._raw and self._wants_input():
                self._raw = self._source.read(_CHUNK_BYTES)
                at_end = not self._raw
            data: bytes = self._stream.decompress(self._raw, count)
            self._raw = getattr(self._stream, "unconsumed_tail", b"")
            if data:
                return data
            if at_end and not self._stream.eof:
                raise EOFError("the end is missing")

    def _wants_input(self) -> bool:
        return bool(getattr(self._stream, "needs_input", True))
