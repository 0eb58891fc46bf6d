"""Undoes the compressions that joblib writes, told by the first bytes of a file."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from typing import IO, Any, Callable, Tuple

from server.model_server.failures import ModelFailure

ERRORS = (EOFError, zlib.error, lzma.LZMAError)
"""What reading raises where a file is cut off or damaged."""

_CHUNK = 1 << 18


def opened(source: IO[bytes]) -> Any:
    """Return a stream of what is in the file, whether it is compressed or not.

    Raises:
        ModelFailure: ``pickle_compression_unsupported`` where lz4 is not installed.
    """
    head = source.read(6)
    source.seek(0)
    for magic, maker in _MAKERS:
        if head.startswith(magic):
            return io.BufferedReader(_Inflating(source, maker), _CHUNK)
    return source


def _lz4() -> Any:
    try:
        from lz4.frame import LZ4FrameDecompressor
    except ImportError:
        raise ModelFailure("pickle_compression_unsupported", compression="lz4") from None
    return LZ4FrameDecompressor()


_MAKERS: Tuple[Tuple[bytes, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    (b"\x5d\x00\x00", lzma.LZMADecompressor),
    (b"\x78", zlib.decompressobj),
    (b"\x04\x22\x4d\x18", _lz4),
)


class _Inflating(io.RawIOBase):
    """One compressed stream, or several one after another; whatever else follows is an error."""

    def __init__(self, source: IO[bytes], maker: Callable[[], Any]) -> None:
        self._source = source
        self._maker = maker
        self._stream = maker()
        self._raw = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, count: int) -> bytes:
        while True:
            if self._stream.eof:
                self._raw = self._stream.unused_data or self._source.read(_CHUNK)
                if not self._raw.strip(b"\x00"):
                    return b""
                self._stream = self._maker()
            if not self._raw and getattr(self._stream, "needs_input", True):
                self._raw = self._source.read(_CHUNK)
                if not self._raw:
                    # What was taken in may still come out.
                    data = self._stream.decompress(b"", count)
                    if data or self._stream.eof:
                        return bytes(data)
                    raise EOFError("the compressed stream ends early")
            data = self._stream.decompress(self._raw, count)
            self._raw = getattr(self._stream, "unconsumed_tail", b"")
            if data:
                return bytes(data)
