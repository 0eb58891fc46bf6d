"""What a file is, told by its leading bytes only; its name says nothing.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.artifacts.boosters import looks_like_lightgbm, looks_like_xgboost
from server.artifacts.onnx_wire import looks_like_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_BYTES = 8192
"""How many leading bytes are enough to tell."""

TAR_BLOCK = 512
COMPRESSIONS = frozenset({"gzip", "zlib", "bz2", "xz", "lzma", "lz4"})
COMPRESSION_ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError)
"""What the decompressors raise at bytes that are none of theirs."""

_PEEK_BYTES = 4096
_ARCHIVES = {"RAR", "7z"}
_CUT = "unexpected end of data"
_XZ_MEMORY = 256 * 1024**2

_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "PDF"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (8, b"WEBP", "WebP"),
    (8, b"WAVE", "WAV"),
    (4, b"ftyp", "MP4"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5/Keras"),
    (0, b"GGUF", "gguf"),
    (0, b"lmgg", "ggml"),
    (0, b"tjgg", "ggml"),
    (4, b"TFL3", "TensorFlow Lite"),
    (4, b"ORTM", "ONNX Runtime (ORT)"),
    (0, b"CBM1", "CatBoost"),
    (0, b"binf", "XGBoost (binary, before 1.0)"),
    (0, b"\x93NUMPY", "NumPy (.npy)"),
    (0, b"PAR1", "Parquet"),
    (0, b"ARROW1", "Arrow"),
    (0, b"Obj\x01", "Avro"),
    (0, b"SQLite format 3\x00", "SQLite"),
    (0, b"\x7fELF", "ELF"),
    (0, b"MZ", "Windows EXE"),
    (0, b"\xca\xfe\xba\xbe", "Java class"),
    (0, b"\xcf\xfa\xed\xfe", "Mach-O"),
    (0, b"Rar!\x1a\x07", "RAR"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"\x1f\x9d", "compress (.Z)"),
    (0, b"ID3", "MP3"),
    (0, b"OggS", "Ogg"),
    (0, b"fLaC", "FLAC"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska"),
)
_COMPRESSED = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
_BINARY_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_OLD_PICKLE = re.compile(
    rb"(?:c[A-Za-z_][\w.]{0,200}\n[A-Za-z_][\w.]{0,200}\n[(q\x85p]"
    rb"|\(i[A-Za-z_][\w.]{0,200}\n[A-Za-z_][\w.]{0,200}\np"
    rb"|\((?:l|d|lp|dp)\d*\n|[\](}]q\x00)"
)
_TEXT_HINTS: tuple[tuple[bytes, str], ...] = (
    (b"#!", "script"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<?xml", "XML"),
    (b"{", "JSON"),
    (b"[", "JSON"),
)

_MODELS: tuple[tuple[str, str, Callable[[bytes], bool]], ...] = (
    ("xgboost", "XGBoost", looks_like_xgboost),
    ("lightgbm", "LightGBM", looks_like_lightgbm),
    ("onnx", "ONNX", looks_like_onnx),
)


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Leading:
    """What leading bytes say: ``kind`` if it may be taken, and what was found, for people.

    ``kind`` is ``zip``, ``tar``, ``gzip``, ``zlib``, ``bz2``, ``xz``, ``lzma``, ``lz4``,
    ``pickle``, ``onnx``, ``xgboost`` or ``lightgbm``; ``inner`` is the kind behind a compression, as far as the leading bytes
    tell. ``is_archive`` tells whether it holds files, of whatever format.
    """

    kind: str | None
    found: str
    inner: str | None = None
    is_archive: bool = False


def recognise(head: bytes) -> Leading:
    """Tell what a file is by its first bytes (``HEAD_BYTES`` of them, or all)."""
    container = _container(head)
    if container is not None:
        return container
    for offset, magic, name in _FOREIGN:
        if head.startswith(magic, offset) and not _is_plain_text(head, magic):
            return Leading(kind=None, found=name, is_archive=name in _ARCHIVES)
    if _BINARY_PICKLE.match(head) or _OLD_PICKLE.match(head):
        return Leading(kind="pickle", found="pickle")
    for kind, found, looks_like in _MODELS:
        if looks_like(head):
            return Leading(kind=kind, found=found)
    return Leading(kind=None, found=_other(head))


def decompressor(kind: str) -> _Decompressor:
    """Return a streaming decompressor of one of ``COMPRESSIONS``."""
    if kind == "lz4":
        from lz4.frame import LZ4FrameDecompressor  # noqa: PLC0415 - few files need it

        return LZ4FrameDecompressor()  # type: ignore[no-any-return]
    makers: dict[str, Callable[[], _Decompressor]] = {
        "gzip": lambda: zlib.decompressobj(31),
        "zlib": zlib.decompressobj,
        "bz2": bz2.BZ2Decompressor,
        "xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
        "lzma": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
    }
    return makers[kind]()


def is_tar(head: bytes) -> bool:
    """Tell whether a tar header begins here: by its checksum, which old ones have too."""
    if len(head) < TAR_BLOCK or not head[0]:
        return False
    text = head[148:156].strip(b" \x00")
    if not text or not all(48 <= byte < 56 for byte in text):
        return False
    block = head[:148] + b" " * 8 + head[156:TAR_BLOCK]
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    return int(text, 8) in {sum(block), signed}


def _container(head: bytes) -> Leading | None:
    if is_tar(head) or head[257:262] == b"ustar":
        return Leading(kind="tar", found="tar", is_archive=True)
    if head[:4] in {b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"}:
        return Leading(kind="zip", found="zip", is_archive=True)
    kind = _compression(head)
    return None if kind is None else _compressed(kind, head)


def _compression(head: bytes) -> str | None:
    for magic, kind in _COMPRESSED:
        if head.startswith(magic):
            return kind
    if head[:1] == b"\x78" and len(head) > 2 and int.from_bytes(head[:2], "big") % 31 == 0:
        return "zlib"
    if re.match(rb"BZh[1-9]1AY&SY", head):
        return "bz2"
    if re.match(rb"\x5d\x00\x00[\x00-\xff]{2}(?:\xff{8}|[\x00-\xff]{5}\x00{3})", head):
        return "lzma"
    return None


def _compressed(kind: str, head: bytes) -> Leading | None:
    try:
        inside = decompressor(kind).decompress(head, _PEEK_BYTES)
    except COMPRESSION_ERRORS:
        return None if kind == "zlib" else Leading(kind=None, found=f"damaged {kind}")
    if not inside:
        # A bz2 block is longer than what is looked at here; the inspection tells later.
        return Leading(kind=kind, found=kind)
    inner = recognise(inside)
    if inner.kind == "pickle" or (inner.kind == "tar" and kind == "gzip"):
        return Leading(kind=kind, found=kind, inner=inner.kind, is_archive=inner.is_archive)
    return Leading(kind=None, found=f"{kind} ({inner.found})", is_archive=inner.is_archive)


def _is_plain_text(head: bytes, magic: bytes) -> bool:
    """Two-letter marks of binary files begin many words too."""
    return len(magic) < 4 and magic.isalnum() and _is_text(head)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.reason != _CUT:
            return False
        text = head[: error.start].decode()
    return bool(text) and not re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text)


def _other(head: bytes) -> str:
    if not head.strip(b"\x00"):
        return "zeros" if head else "nothing"
    if _is_safetensors(head):
        return "safetensors"
    if head[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return "text"
    if head[:2] == b"\x08\x01" and b"serve" in head:
        return "TensorFlow SavedModel"
    if _is_text(head):
        start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
        return next((name for mark, name in _TEXT_HINTS if start.startswith(mark)), "text")
    return "unknown binary data"


def _is_safetensors(head: bytes) -> bool:
    return 2 <= int.from_bytes(head[:8], "little") < 1 << 27 and head[8:9] == b"{"
