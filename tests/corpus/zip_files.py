"""Zip archives that hide, overlap, lie or grow, around a model that is sound."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.corpus.opcodes import call, in_model, pickle_of
from tests.corpus.technique import Technique
from tests.support.onnx_files import linear

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[[str], bytes]

MODEL = linear()


def harm(mark: str) -> bytes:
    """A pickle that picklescan knows."""
    return pickle_of(call("os:mkdir", mark))


@dataclass(slots=True)
class Part:
    """One entry, and what its two headers say; ``local`` is what differs in the one before it."""

    name: str
    content: bytes = b""
    method: int = 0
    flags: int = 0
    mode: int = 0
    size: int | None = None
    checksum: int | None = None
    offset: int | None = None
    before: bytes = b""
    local: dict[str, object] = field(default_factory=dict)

    @property
    def packed(self) -> bytes:
        if self.method != zipfile.ZIP_DEFLATED:
            return self.content
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflate.compress(self.content) + deflate.flush()


def zip_of(
    *parts: Part, prefix: bytes = b"", comment: bytes = b"", count: int | None = None
) -> bytes:
    """Write a zip of any parts, true or not."""
    body, directory = bytearray(prefix), b""
    for part in parts:
        body += part.before
        at = len(body) if part.offset is None else part.offset
        packed = part.packed
        told = {
            "name": part.name,
            "method": part.method,
            "flags": part.flags | (0 if part.name.isascii() else 0x800),
            "checksum": zlib.crc32(part.content) if part.checksum is None else part.checksum,
            "packed": len(packed),
            "size": len(part.content) if part.size is None else part.size,
        }
        body += _local({**told, **part.local}) + packed
        directory += _central(told, part.mode, at)
    number = len(parts) if count is None else count
    end = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, number, number, len(directory), len(body), len(comment)
    )
    return bytes(body) + directory + end + comment


def _local(told: dict[str, object]) -> bytes:
    name = str(told["name"]).encode()
    head = (b"PK\x03\x04", 20, told["flags"], told["method"], 0, 33)
    numbers = (told["checksum"], told["packed"], told["size"], len(name), 0)
    return struct.pack("<4s5H3L2H", *head, *numbers) + name


def _central(told: dict[str, object], mode: int, at: int) -> bytes:
    name = str(told["name"]).encode()
    head = (b"PK\x01\x02", 0x314, 20, told["flags"], told["method"], 0, 33)
    numbers = (
        told["checksum"],
        told["packed"],
        told["size"],
        len(name),
        0,
        0,
        0,
        0,
        mode << 16,
        at,
    )
    return struct.pack("<4s6H3L5H2L", *head, *numbers) + name


def _named(name: str) -> Make:
    return lambda _: zip_of(Part(name, MODEL))


def _of_kind(kind: int) -> Make:
    return lambda _: zip_of(
        Part("model.onnx", MODEL), Part("odd", b"/etc/passwd", mode=kind | 0o644)
    )


def _two(first: str, second: str) -> Make:
    return lambda _: zip_of(Part(first, MODEL), Part(second, MODEL))


def _overlapping(_: str) -> bytes:
    """Two names for one content, as in Fifield's bomb."""
    return zip_of(Part("a", MODEL), Part("b", MODEL, offset=0))


def _quoting(_: str) -> bytes:
    """An entry whose content is the next entry, header and all."""
    inner = zip_of(Part("b", MODEL))[: -46 - 1 - 22]
    return zip_of(Part("a", inner), Part("b", MODEL, offset=31))


def _bomb(_: str) -> bytes:
    return zip_of(Part("model.onnx", bytes(20 * 1024**2), zipfile.ZIP_DEFLATED))


def _lying_bomb(_: str) -> bytes:
    return zip_of(Part("model.onnx", bytes(5 * 1024**2), zipfile.ZIP_DEFLATED, size=100))


def _many(_: str) -> bytes:
    return zip_of(*(Part(str(number)) for number in range(10_001)))


def _uncounted(_: str) -> bytes:
    return zip_of(Part("model.onnx", MODEL), Part("more", b"x"), count=1)


def _with_prefix(mark: str) -> bytes:
    return zip_of(Part("model.onnx", MODEL), prefix=b"PK\x03\x04" + harm(mark))


def _with_tail(mark: str) -> bytes:
    return zip_of(Part("model.onnx", MODEL)) + harm(mark)


def _with_gap(mark: str) -> bytes:
    return zip_of(Part("model.onnx", MODEL), Part("b", b"x", before=harm(mark)))


def _two_zips(mark: str) -> bytes:
    return zip_of(Part("model.pkl", harm(mark))) + zip_of(Part("model.onnx", MODEL))


def _hidden_end(mark: str) -> bytes:
    """A second directory inside of the comment of the first one."""
    return zip_of(Part("model.onnx", MODEL), comment=zip_of(Part("model.pkl", harm(mark))))


def _zip64(count: int) -> Make:
    def make(_: str) -> bytes:
        whole = zip_of(Part("model.onnx", MODEL))
        body, end = whole[:-22], whole[-22:]
        length = len(whole) - 22 - whole.rfind(b"PK\x01\x02")
        record = struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, len(body) - length
        )
        return body + record + struct.pack("<4sLQL", b"PK\x06\x07", 0, len(body), 1) + end

    return make


def _volume(_: str) -> bytes:
    whole = bytearray(zip_of(Part("model.onnx", MODEL)))
    whole[-18:-14] = struct.pack("<HH", 1, 1)
    return bytes(whole)


def _wrong_checksum(mark: str) -> bytes:
    """Scanners that trust the checksum give up on such an entry, and readers do not."""
    return zip_of(Part("model.onnx", MODEL), Part("model.pkl", harm(mark), checksum=1))


def _with_descriptor(mark: str) -> bytes:
    """More bytes behind an entry than its descriptor takes."""
    return zip_of(Part("model.onnx", MODEL, flags=8), Part("b", b"x", before=harm(mark) * 2))


def _behind_deflate(mark: str) -> bytes:
    """Bytes inside of an entry, behind the end of its compressed stream."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(MODEL) + deflate.flush() + harm(mark)
    part = Part("model.onnx", packed)
    told = zip_of(part)
    at = told.rfind(b"PK\x01\x02")
    made = bytearray(told)
    for method, checksum in ((8, 14), (at + 10, at + 16)):
        made[method : method + 2] = struct.pack("<H", 8)
        made[checksum : checksum + 4] = struct.pack("<L", zlib.crc32(MODEL))
        size = checksum + 8
        made[size : size + 4] = struct.pack("<L", len(MODEL))
    return bytes(made)


def _packed_otherwise(_: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("model.onnx", MODEL * 20)
    return target.getvalue()


def _beside(name: str, content: Callable[[str], bytes]) -> Make:
    return lambda mark: zip_of(Part("model.onnx", MODEL), Part(name, content(mark)))


_STRUCTURE: dict[str, tuple[Make, str]] = {
    "a name that climbs up": (_named("../model.onnx"), "archive_name_unsafe"),
    "a name that climbs up inside": (_named("a/../../model.onnx"), "archive_name_unsafe"),
    "an absolute name": (_named("/etc/cron.d/model"), "archive_name_unsafe"),
    "a name with backslashes": (_named("..\\model.onnx"), "archive_name_unsafe"),
    "a name on a drive": (_named("C:/model.onnx"), "archive_name_unsafe"),
    "a name that is cut at a NUL": (_named("model.onnx\x00.txt"), "archive_name_unsafe"),
    "a name with control characters": (_named("model\x1b[2K.onnx"), "archive_name_unsafe"),
    "a name that is shown turned around": (_named("model\u202exnno.exe"), "archive_name_unsafe"),
    "no name": (_named(""), "archive_name_unsafe"),
    "a name without an end": (_named("n" * 300), "archive_name_too_long"),
    "a name of many folders": (_named("d/" * 20 + "m"), "archive_too_deep"),
    "a name twice": (_two("m", "m"), "archive_name_repeated"),
    "a name twice, once in capitals": (_two("model.ONNX", "MODEL.onnx"), "archive_name_repeated"),
    "a name twice, in two forms of Unicode": (_two("é", "e\u0301"), "archive_name_repeated"),
    "a symbolic link": (_of_kind(stat.S_IFLNK), "archive_link_refused"),
    "a device": (_of_kind(stat.S_IFCHR), "archive_special_refused"),
    "a named pipe": (_of_kind(stat.S_IFIFO), "archive_special_refused"),
    "a folder with content": (
        lambda mark: zip_of(Part("model.onnx", MODEL), Part("dir/", harm(mark))),
        "archive_folder_with_content",
    ),
    "two names for the same bytes": (_overlapping, "archive_overlapping"),
    "an entry quoted by another": (_quoting, "archive_overlapping"),
    "a bomb": (_bomb, "archive_ratio"),
    "a bomb that calls itself small": (_lying_bomb, "archive_size_wrong"),
    "a size that is too small": (
        lambda _: zip_of(Part("model.onnx", MODEL, size=len(MODEL) - 9)),
        "archive_size_wrong",
    ),
    "a size that is too large": (
        lambda _: zip_of(Part("model.onnx", MODEL, size=1 << 30)),
        "archive_size_wrong",
    ),
    "more entries than can be looked at": (_many, "archive_too_many_entries"),
    "a directory that counts wrongly": (_uncounted, "archive_damaged"),
    "a larger directory behind the first": (_zip64(1 << 20), "archive_too_many_entries"),
    "another name before the file": (
        lambda _: zip_of(Part("model.onnx", MODEL, local={"name": "model.pkl1"})),
        "archive_headers_differ",
    ),
    "another size before the file": (
        lambda _: zip_of(Part("model.onnx", MODEL, local={"size": 9})),
        "archive_headers_differ",
    ),
    "another compression before the file": (
        lambda _: zip_of(Part("model.onnx", MODEL, local={"method": 8})),
        "archive_headers_differ",
    ),
    "bytes before the archive": (_with_prefix, "archive_hidden_data"),
    "bytes behind the archive": (_with_tail, "archive_hidden_data"),
    "bytes between entries": (_with_gap, "archive_hidden_data"),
    "bytes instead of a descriptor": (_with_descriptor, "archive_hidden_data"),
    "bytes behind a compressed stream": (_behind_deflate, "archive_size_wrong"),
    "two archives in a row": (_two_zips, "archive_hidden_data"),
    "an archive in the comment": (_hidden_end, "archive_hidden_data"),
    "one volume of several": (_volume, "archive_multi_volume"),
    "a wrong checksum": (_wrong_checksum, "archive_checksum_wrong"),
    "encryption": (
        lambda _: zip_of(Part("model.onnx", MODEL, flags=1)),
        "archive_encrypted",
    ),
    "encryption said only before the file": (
        lambda _: zip_of(Part("model.onnx", MODEL, local={"flags": 1})),
        "archive_encrypted",
    ),
    "another compression": (_packed_otherwise, "archive_method_unsupported"),
}

_CONTENT: dict[str, tuple[Make, str]] = {
    "a pickle without an extension": (_beside("data", harm), "pickle_dangerous"),
    "a pickle that is called a picture": (_beside("logo.png", harm), "pickle_dangerous"),
    "a pickle that is called a text": (_beside("README.md", harm), "pickle_dangerous"),
    "a packed pickle": (_beside("cache.bin", lambda m: zlib.compress(harm(m))), "pickle_dangerous"),
    "a pickle of protocol 0": (
        _beside("notes", lambda m: b"cos\nmkdir\n(S'" + m.encode() + b"'\ntR."),
        "pickle_dangerous",
    ),
    "a pickle whose header is of no protocol": (
        _beside("data", lambda m: b"\x80\x01" + harm(m)[2:]),
        "pickle_dangerous",
    ),
    "a damaged pickle": (_beside("data.pkl", lambda m: harm(m)[:-1] + b"\xff"), "pickle_dangerous"),
    "a second pickle behind a model": (
        _beside("m.pkl", lambda m: in_model(call("decimal:Decimal", 1)) + harm(m)),
        "pickle_dangerous",
    ),
}


def techniques() -> list[Technique]:
    return [
        Technique(group=group, name=title, make=make, code=code)
        for group, listed in (("zip", _STRUCTURE), ("beside the model", _CONTENT))
        for title, (make, code) in listed.items()
    ]
