"""Packed bodies: gzip, deflate and zstd inflated within a limit, and answers packed."""

from __future__ import annotations

import zlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import zstandard

from server.model_server.failures import BadInputError

Piece = Union[bytes, bytearray, memoryview]

ACCEPTED = ("gzip", "zstd", "deflate")
"""Encodings of bodies, the one that is preferred for answers first.

The quickest is not, since clients that unpack gzip and deflate by themselves have HTTP libraries
that announce zstd too; tritonclient for asyncio is one.
"""

WORTH_BYTES = 1024
"""Answers below this size go as they are: packing would cost more than it saves."""

_LEVELS = {"zstd": 1, "gzip": 1, "deflate": 1}
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_RAW_BITS = -15
_STEP_BYTES = 1 << 20
_SLICE_BYTES = 16 * 1024
"""What gzip is given at once: it copies what is left of it at each end of a member."""
_MAX_PARTS = 20_000
"""Members, frames and blocks of one body; more of them are made to waste time."""
_MAX_WINDOW_BYTES = 8 << 20
"""What a decoder of this content coding has to provide; more memory is not given."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPED = b"\x2a\x4d\x18"
_RLE_BLOCK = 1
_RESERVED_BLOCK = 3


class _BrokenError(Exception):
    """The data is not what its encoding prescribes, or ends too early."""


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Unpack a body; never are more than ``limit`` bytes and one step of 1 MiB produced.

    Several gzip members or zstd frames in a row are one body, as their formats say.

    Raises:
        BadInputError: ``content_encoding_unsupported``, ``body_encoding_broken`` or
            ``request_too_large``.
    """
    pieces = _INFLATE.get(encoding)
    if pieces is None:
        raise BadInputError("content_encoding_unsupported", found=encoding)
    parts: List[bytes] = []
    size = 0
    try:
        for part in pieces(body):
            size += len(part)
            if size > limit:
                raise BadInputError("request_too_large", limit=limit)
            parts.append(part)
    except (_BrokenError, zlib.error, zstandard.ZstdError):
        raise BadInputError("body_encoding_broken", encoding=encoding) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def choose(accept_encoding: Optional[str]) -> Optional[str]:
    """Choose the encoding of an answer by ``Accept-Encoding``; None is the answer as it is."""
    if not accept_encoding:
        return None
    weights = _weights(accept_encoding)
    rest = weights.get("*", 0.0)
    best = max(ACCEPTED, key=lambda name: weights.get(name, rest))
    weight = weights.get(best, rest)
    if weight <= 0 or weights.get("identity", 0.0) > weight:
        return None
    return best


def deflate(pieces: Sequence[Piece], encoding: str) -> bytes:
    """Pack an answer, given in pieces, with one of :data:`ACCEPTED`."""
    packer: Any
    if encoding == "zstd":
        size = sum(map(len, pieces))
        packer = zstandard.ZstdCompressor(level=_LEVELS[encoding]).compressobj(size=size)
    else:
        packer = zlib.compressobj(_LEVELS[encoding], zlib.DEFLATED, _WINDOW_BITS[encoding])
    parts = [packer.compress(piece) for piece in pieces]
    parts.append(packer.flush())
    return b"".join(parts)


def _weights(accept_encoding: str) -> Dict[str, float]:
    """Read names and their weights; a weight that is none refuses its name."""
    weights: Dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        name, _, parameters = part.partition(";")
        weight = 1.0
        key, _, value = parameters.partition("=")
        if key.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                weight = 0.0
            if not 0.0 <= weight <= 1.0:
                weight = 0.0
        weights[name.strip()] = weight
    return weights


def _inflate_gzip(body: bytes) -> Iterator[bytes]:
    start = 0
    for _ in range(_MAX_PARTS):
        stream = zlib.decompressobj(_WINDOW_BITS["gzip"])
        while not stream.eof:
            piece = body[start : start + _SLICE_BYTES]
            if not piece:
                raise _BrokenError
            start += len(piece)
            yield from _steps(stream, piece)
        start -= len(stream.unused_data)
        if start == len(body):
            return
    raise _BrokenError


def _inflate_deflate(body: bytes) -> Iterator[bytes]:
    # Some senders leave out zlib's own header, whatever the name was meant for.
    wrapped = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    stream = zlib.decompressobj(_WINDOW_BITS["deflate"] if wrapped else _RAW_BITS)
    yield from _steps(stream, body)
    if stream.unused_data or not stream.eof:
        raise _BrokenError


def _steps(stream: Any, data: bytes) -> Iterator[bytes]:
    part = stream.decompress(data, _STEP_BYTES)
    while part:
        yield part
        part = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, _STEP_BYTES)


def _inflate_zstd(body: bytes) -> Iterator[bytes]:
    if not body:
        raise _BrokenError
    unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    start = 0
    room = _MAX_PARTS
    while start < len(body):
        end, blocks = _frame_end(body, start, room)
        room -= blocks + 1
        if blocks:
            with unpacker.stream_reader(memoryview(body)[start:end]) as reader:
                part = reader.read(_STEP_BYTES)
                while part:
                    yield part
                    part = reader.read(_STEP_BYTES)
        start = end


def _frame_end(body: bytes, start: int, room: int) -> Tuple[int, int]:
    """Find where a frame ends, which the library does not tell when it runs out of data.

    Returns that place and the number of its blocks, 0 for a frame that is to be skipped.
    """
    if body[start + 1 : start + 4] == _ZSTD_SKIPPED and body[start] >> 4 == 5 and room > 0:
        end = start + 8 + int.from_bytes(body[start + 4 : start + 8], "little")
        return _within(end, body), 0
    header = body[start : start + 18]
    if header[:4] != _ZSTD_MAGIC:
        raise _BrokenError
    has_checksum = zstandard.get_frame_parameters(header).has_checksum
    end = start + zstandard.frame_header_size(header)
    for blocks in range(1, room):
        block = int.from_bytes(body[end : _within(end + 3, body)], "little")
        kind, size = block >> 1 & 3, block >> 3
        if kind == _RESERVED_BLOCK:
            raise _BrokenError
        end += 3 + (1 if kind == _RLE_BLOCK else size)
        if block & 1:
            return _within(end + 4 if has_checksum else end, body), blocks
    raise _BrokenError


def _within(end: int, body: bytes) -> int:
    if end > len(body):
        raise _BrokenError
    return end


_INFLATE: Dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "gzip": _inflate_gzip,
    "deflate": _inflate_deflate,
    "zstd": _inflate_zstd,
}
