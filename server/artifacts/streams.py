"""Reads compressed files as streams, bounded by a meter.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any

from server.artifacts.failures import InspectionError
from server.artifacts.recognise import COMPRESSION_ERRORS, decompressor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.artifacts.limits import Meter

_CHUNK_BYTES = 128 * 1024


def decompressed(kind: str, source: IO[bytes], meter: Meter | None = None) -> io.BufferedReader:
    """Return the bytes behind a compression as a stream; ``meter`` counts them, if given.

    Reading raises ``InspectionError`` with ``archive_truncated``, ``archive_damaged``,
    ``archive_hidden_data`` or the meter's codes.
    """
    return io.BufferedReader(_Inflating(kind, source, meter), _CHUNK_BYTES)


def stream_of(chunks: Iterator[bytes]) -> io.BufferedReader:
    """Return chunks, as an archive's member gives them, as a stream."""
    return io.BufferedReader(_Chunks(chunks), _CHUNK_BYTES)


class _Chunks(io.RawIOBase):
    """Chunks of any size, read one after another."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


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
        except EOFError:
            raise InspectionError("archive_truncated") from None
        except COMPRESSION_ERRORS as error:
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
                if not self._raw:
                    return b""
                if not self._raw.strip(b"\x00"):
                    self._skip_zeros()
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

    def _skip_zeros(self) -> None:
        """Read the zeros that fill up a block behind the last stream."""
        while self._raw:
            if self._raw.strip(b"\x00"):
                raise InspectionError("archive_hidden_data", evidence="behind zeros")
            self._raw = self._source.read(_CHUNK_BYTES)

    def _wants_input(self) -> bool:
        return bool(getattr(self._stream, "needs_input", True))
