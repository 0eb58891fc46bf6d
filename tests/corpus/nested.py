"""Files that are two things at once, archives in archives, and headers that are too large."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import zipfile
from typing import TYPE_CHECKING

from tests.corpus.opcodes import PROTOCOL, call, in_model, pickle_of
from tests.corpus.tar_files import entry
from tests.corpus.technique import Technique
from tests.corpus.zip_files import MODEL, Part, harm, zip_of
from tests.support.onnx_files import bytes_field

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[[str], bytes]


def npy(description: str, body: bytes, *, shape: str = "(1,)", length: int | None = None) -> bytes:
    header = f"{{'descr': {description}, 'fortran_order': False, 'shape': {shape}, }}"
    padded = header.encode().ljust(117) + b"\n"
    size = len(padded) if length is None else length
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", size) + padded + body


def _npz(name: str, content: Callable[[str], bytes]) -> Make:
    """Put an ``.npz`` beside a model."""
    return lambda mark: zip_of(
        Part("model.onnx", MODEL), Part(name, zip_of(Part("x.npy", content(mark))))
    )


def _beside(name: str, content: Callable[[str], bytes]) -> Make:
    return lambda mark: zip_of(Part("model.onnx", MODEL), Part(name, content(mark)))


def _tar(mark: str) -> bytes:
    return entry("model.pkl", harm(mark)) + bytes(1024)


def _objects(mark: str) -> bytes:
    return npy("'|O'", harm(mark))


def _structured(mark: str) -> bytes:
    return npy("[('a', '<i4'), ('b', [('c', '|O')])]", harm(mark))


def _zipped(mark: str) -> bytes:
    return zip_of(Part("model.pkl", harm(mark)))


def _onnx_and_zip(mark: str) -> bytes:
    """A zip behind an ONNX model, in a field that ONNX does not know."""
    return MODEL + bytes_field(1000, _zipped(mark))


def _onnx_then_zip(mark: str) -> bytes:
    return MODEL + _zipped(mark)


def _pickle_and_zip(mark: str) -> bytes:
    return in_model(call("decimal:Decimal", 1)) + _zipped(mark)


def _picture_and_zip(mark: str) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _zipped(mark)


def _script_and_zip(mark: str) -> bytes:
    return b"#!/bin/sh\ntouch '" + mark.encode() + b"'\nexit\n" + _zipped(mark)


def _tar_and_zip(mark: str) -> bytes:
    return entry("model.onnx", MODEL) + bytes(1024) + _zipped(mark)


def _zip_and_pickle(mark: str) -> bytes:
    """A pickle at the front, whose first opcodes are the zip's first bytes."""
    return b"PK\x03\x04" + harm(mark) + _zipped(mark)


def _packed_thrice(mark: str) -> bytes:
    return gzip.compress(gzip.compress(gzip.compress(harm(mark))))


def _large_gzip_header(mark: str) -> bytes:
    packed = gzip.compress(harm(mark))
    extra = struct.pack("<H", 65535) + bytes(65535)
    return packed[:3] + b"\x0c" + packed[4:10] + extra + b"../../etc/passwd\x00" + packed[10:]


def _large_comment(mark: str) -> bytes:
    return zip_of(Part("model.pkl", harm(mark)), comment=bytes(65535))


def _large_dictionary(mark: str) -> bytes:
    """An xz stream that needs more memory than it has bytes."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    return lzma.compress(harm(mark), filters=filters)


def _large_safetensors(_: str) -> bytes:
    return struct.pack("<Q", 1 << 26) + b'{"x": ' + b"[" * 1000


def _deep_sample(_: str) -> bytes:
    return zip_of(Part("model.onnx", MODEL), Part("sample.json", b"[" * 200_000))


def _zip_in_sample(mark: str) -> bytes:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x.npy", npy("'<f8'", bytes(8)))
        archive.writestr("y.npz", _zipped(mark))
    return zip_of(Part("model.onnx", MODEL), Part("sample.npz", inner.getvalue()))


def _frames(mark: str) -> bytes:
    """Frames of no length between all opcodes."""
    body = pickle_of(call("os:mkdir", mark))[2:]
    return PROTOCOL + (b"\x95" + bytes(8)) * 2000 + body


_FILES: dict[str, tuple[Make, str]] = {
    "a zip in a zip": (_beside("data.zip", _zipped), "archive_nested"),
    "a zip in a zip, called a text": (_beside("README.md", _zipped), "archive_nested"),
    "a tar in a zip": (_beside("data", _tar), "archive_nested"),
    "a packed tar in a zip": (_beside("data", lambda m: gzip.compress(_tar(m))), "archive_nested"),
    "a tar in xz in a zip": (_beside("data", lambda m: lzma.compress(_tar(m))), "archive_nested"),
    "a packed zip in a zip": (
        _beside("data", lambda m: gzip.compress(_zipped(m))),
        "archive_nested",
    ),
    "a 7z in a zip": (
        _beside("d.7z", lambda _: b"7z\xbc\xaf\x27\x1c" + bytes(32)),
        "archive_nested",
    ),
    "a rar in a zip": (
        _beside("d.rar", lambda _: b"Rar!\x1a\x07\x01" + bytes(32)),
        "archive_nested",
    ),
    "a zip in a tar": (
        lambda m: entry("m.onnx", MODEL) + entry("d", _zipped(m)) + bytes(1024),
        "archive_nested",
    ),
    "an archive in a sample": (_zip_in_sample, "archive_nested"),
    "objects in a sample": (_npz("sample.npz", _objects), "sample_holds_objects"),
    "objects in a structured sample": (_npz("sample.npz", _structured), "sample_holds_objects"),
    "objects in an array beside the model": (_beside("data.npy", _objects), "pickle_dangerous"),
    "objects in arrays beside the model": (_npz("data.npz", _objects), "pickle_dangerous"),
    "objects in a structured array": (_npz("data.npz", _structured), "pickle_dangerous"),
    "a sample whose header is code": (
        _npz("sample.npz", lambda m: npy(f"__import__('os').mkdir({m!r})", b"")),
        "sample_damaged",
    ),
    "a sample whose header is endless": (
        _npz("sample.npz", lambda _: npy("'<f8'", b"", length=65535)),
        "sample_damaged",
    ),
    "a sample that is nested too deeply": (_deep_sample, "sample_damaged"),
    "ONNX with a zip in it": (_onnx_and_zip, "artifact_type_unsupported"),
    "ONNX with a zip behind it": (_onnx_then_zip, "artifact_type_unsupported"),
    "a pickle with a zip behind it": (_pickle_and_zip, "pickle_extra_bytes"),
    "a tar with a zip behind it": (_tar_and_zip, "archive_hidden_data"),
    "a picture with a zip behind it": (_picture_and_zip, "artifact_type_unsupported"),
    "a script with a zip behind it": (_script_and_zip, "artifact_type_unsupported"),
    "a zip that begins as a pickle": (_zip_and_pickle, "archive_hidden_data"),
    "a pickle packed three times": (_packed_thrice, "artifact_type_unsupported"),
    "a tar packed by bz2": (lambda m: bz2.compress(_tar(m)), "artifact_type_unsupported"),
    "a gzip header of 64 KiB with a path": (_large_gzip_header, "pickle_dangerous"),
    "a zip comment of 64 KiB": (_large_comment, "pickle_dangerous"),
    "an xz dictionary of 1 GiB": (_large_dictionary, "artifact_type_unsupported"),
    "a safetensors header of 64 MiB": (_large_safetensors, "artifact_type_unsupported"),
    "thousands of empty frames": (_frames, "pickle_dangerous"),
}


def techniques() -> list[Technique]:
    return [
        Technique(group="two things at once", name=title, make=make, code=code)
        for title, (make, code) in _FILES.items()
    ]
