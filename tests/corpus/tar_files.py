"""Tar archives whose headers lie, contradict each other, lead elsewhere or never end."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

from tests.corpus.technique import Technique
from tests.corpus.zip_files import MODEL, harm

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[[str], bytes]

_END = bytes(1024)
_REGULAR, _LINK, _SYMLINK, _DEVICE, _FOLDER, _PIPE = b"0", b"1", b"2", b"3", b"5", b"6"


def entry(
    name: str,
    content: bytes = b"",
    kind: bytes = _REGULAR,
    *,
    size: bytes | None = None,
    target: str = "",
    checksum: int = 0,
) -> bytes:
    """Write one entry: its header block, its bytes and what fills them up."""
    block = bytearray(512)
    block[: len(name.encode()[:100])] = name.encode()[:100]
    block[100:124] = b"0000644\x00" + b"0000000\x00" * 2
    block[124:136] = size or b"%011o\x00" % len(content)
    block[136:148] = b"00000000000\x00"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(target)] = target.encode()
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\x00 " % (sum(block) + checksum)
    return bytes(block) + content + bytes(-len(content) % 512)


def records(*pairs: tuple[str, str]) -> bytes:
    """Write pax records; each begins with its own length."""
    made = b""
    for key, value in pairs:
        body = f" {key}={value}\n".encode()
        length = len(body) + len(str(len(body)))
        length = len(body) + len(str(length))
        made += str(length).encode() + body
    return made


def pax(*pairs: tuple[str, str], kind: bytes = b"x") -> bytes:
    return entry("pax", records(*pairs), kind)


def long_name(name: bytes) -> bytes:
    return entry("././@LongLink", name + b"\x00", b"L")


_SOUND = entry("model.onnx", MODEL)


def _tar(*entries: bytes) -> Make:
    return lambda _: b"".join(entries) + _END


def _of_kind(kind: bytes, target: str = "") -> Make:
    return _tar(_SOUND, entry("odd", kind=kind, target=target))


def _chain(_: str) -> bytes:
    """Links that lead to links: the longer the path, the less of it is checked by others."""
    links = [entry(f"{'d' * 90}{number}", kind=_SYMLINK, target="d" * 90) for number in range(16)]
    return b"".join(links) + entry("out", kind=_SYMLINK, target="../../../../etc") + _SOUND + _END


def _smuggled(mark: str) -> bytes:
    """The pax header says that a file is empty, so that its content is read as further entries."""
    hidden = entry("model.pkl", harm(mark))
    return pax(("size", "0")) + entry("data", hidden) + _SOUND + _END


def _smuggled_backwards(mark: str) -> bytes:
    """The header block says that it is empty, and the pax header that it is not."""
    hidden = entry("model.pkl", harm(mark))
    return pax(("size", str(len(hidden)))) + entry("data", hidden, size=b"%011o\x00" % 7) + _END


def _behind_end(mark: str) -> bytes:
    return _SOUND + _END + entry("model.pkl", harm(mark)) + _END


def _headers_only(_: str) -> bytes:
    return pax(("comment", "x"), kind=b"g") * 11_000


def _bomb(_: str) -> bytes:
    return gzip.compress(entry("model.onnx", bytes(40 * 1024**2)) + _END)


def _two_streams(mark: str) -> bytes:
    return gzip.compress(_SOUND) + gzip.compress(entry("x", harm(mark)) + _END)


def _other_content(mark: str) -> bytes:
    return gzip.compress(_SOUND + _END) + harm(mark)


_FILES: dict[str, tuple[Make, str]] = {
    "a name that climbs up": (_tar(entry("../model.onnx", MODEL)), "archive_name_unsafe"),
    "an absolute name": (_tar(entry("/etc/cron.d/m", MODEL)), "archive_name_unsafe"),
    "a climbing name in a pax header": (
        _tar(pax(("path", "../../m")), entry("m", MODEL)),
        "archive_name_unsafe",
    ),
    "a climbing name in GNU's header": (
        _tar(long_name(b"../../m"), entry("m", MODEL)),
        "archive_name_unsafe",
    ),
    "a NUL in a pax name": (_tar(pax(("path", "m\x00../x")), _SOUND), "archive_name_unsafe"),
    "bytes behind a NUL in GNU's name": (
        _tar(long_name(b"m\x00../../x"), _SOUND),
        "archive_tar_header",
    ),
    "two names, pax and GNU": (
        _tar(pax(("path", "a")), long_name(b"b"), _SOUND),
        "archive_tar_header",
    ),
    "two names in one pax header": (
        _tar(pax(("path", "a"), ("path", "b")), _SOUND),
        "archive_tar_header",
    ),
    "one name for all entries": (
        _tar(pax(("path", "../x"), kind=b"g"), _SOUND),
        "archive_tar_header",
    ),
    "one size for all entries": (
        _tar(pax(("size", "0"), kind=b"g"), _SOUND),
        "archive_tar_header",
    ),
    "a symbolic link": (_of_kind(_SYMLINK, "/etc/passwd"), "archive_link_refused"),
    "a hard link": (_of_kind(_LINK, "../../etc/passwd"), "archive_link_refused"),
    "a chain of links": (_chain, "archive_link_refused"),
    "a device": (_of_kind(_DEVICE), "archive_special_refused"),
    "a named pipe": (_of_kind(_PIPE), "archive_special_refused"),
    "a sparse file of GNU": (_of_kind(b"S"), "archive_special_refused"),
    "a sparse file in a pax header": (
        _tar(pax(("GNU.sparse.realsize", "99999999999")), _SOUND),
        "archive_special_refused",
    ),
    "a file that goes on in another volume": (_of_kind(b"M"), "archive_special_refused"),
    "a kind that nobody defined": (_of_kind(b"Z"), "archive_special_refused"),
    "a folder with content": (
        lambda mark: _SOUND + entry("dir", harm(mark), _FOLDER) + _END,
        "archive_folder_with_content",
    ),
    "a file read as entries, by pax": (_smuggled, "archive_tar_header"),
    "a size said twice": (_smuggled_backwards, "archive_tar_header"),
    "a size that is no number": (
        _tar(entry("m", MODEL, size=b"0000001_000\x00")),
        "archive_tar_header",
    ),
    "a size in a pax header that is no number": (
        _tar(pax(("size", "-1")), _SOUND),
        "archive_tar_header",
    ),
    "a negative size": (_tar(entry("m", MODEL, size=b"\xff" * 12)), "archive_tar_header"),
    "a size beyond all disks": (
        _tar(entry("m", MODEL, size=b"\x80" + b"\x7f" * 11)),
        "archive_tar_header",
    ),
    "a size beyond the file": (
        _tar(entry("m", MODEL, size=b"77777777777\x00")),
        "archive_truncated",
    ),
    "a record of no length": (
        lambda _: entry("pax", b"0 path=x\n", b"x") + _SOUND + _END,
        "archive_tar_header",
    ),
    "a record longer than its header": (
        lambda _: entry("pax", b"999 path=x\n", b"x") + _SOUND + _END,
        "archive_tar_header",
    ),
    "a header larger than any name": (
        lambda _: entry("pax", bytes(1024**2), b"x") + _SOUND + _END,
        "archive_tar_header",
    ),
    "a header without an entry": (_tar(_SOUND, pax(("path", "x"))), "archive_tar_header"),
    "headers without an end": (_headers_only, "archive_too_many_entries"),
    "a wrong checksum": (_tar(_SOUND, entry("m", MODEL, checksum=1)), "archive_tar_header"),
    "entries behind the end": (_behind_end, "archive_hidden_data"),
    "a bomb": (_bomb, "archive_ratio"),
    "a second stream": (_two_streams, "pickle_dangerous"),
    "bytes behind the stream": (_other_content, "archive_damaged"),
    "a name twice, once in capitals": (
        _tar(entry("M.onnx", MODEL), entry("m.ONNX", MODEL)),
        "archive_name_repeated",
    ),
}


def techniques() -> list[Technique]:
    return [
        Technique(group="tar", name=title, make=make, code=code)
        for title, (make, code) in _FILES.items()
    ]
