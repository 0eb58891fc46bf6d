"""Takes one model, its sample and its requirements out of an archive, and nothing else.

Our own loop over the members, never ``extractall``; no name of the archive becomes a path. Runs
in the inspecting child too: standard library only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import Names, shown
from server.artifacts.recognise import HEAD_BYTES, recognise
from server.artifacts.streams import decompressed
from server.artifacts.tars import tar_members
from server.artifacts.torch_zip import ARRAYS, OTHER, zip_layout
from server.artifacts.zips import open_zip, zip_members

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.artifacts.limits import Limits, Meter
    from server.artifacts.zips import Member

REQUIREMENTS = "requirements.txt"
SAMPLES = ("sample.npz", "sample.json")

_REQUIREMENTS_BYTES = 24 * 1024
_SAMPLE_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member that may be the model: its name in the archive, and the file it was put into."""

    name: str
    path: Path
    kind: str


@dataclass(slots=True)
class Unpacked:
    """What was found in an archive; ``requirements`` is text, ``sample`` a file in the folder."""

    members: list[str] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    samples: dict[str, Path] = field(default_factory=dict)
    requirements: dict[str, str] = field(default_factory=dict)


def members_of(kind: str, file: IO[bytes], meter: Meter) -> Iterator[Member]:
    """Yield the members of a ``zip``, ``tar`` or ``gzip`` (tar.gz).

    Raises:
        InspectionError: the archive breaks a rule or a limit.
    """
    if kind == "zip":
        yield from zip_members(open_zip(file, meter.limits), meter)
    elif kind == "gzip":
        yield from tar_members(decompressed(kind, file), meter)
    else:
        yield from tar_members(file, meter)


def unpack(members: Iterator[Member], folder: Path, limits: Limits) -> Unpacked:
    """Read every member once and keep what may matter as files of our own naming.

    Raises:
        InspectionError: the archive breaks a rule or a limit.
    """
    found = Unpacked()
    names = Names(limits.depth)
    for number, member in enumerate(members):
        name = names.admit(member.name, is_folder=member.is_folder)
        if member.is_folder or not name:
            continue
        found.members.append(name)
        _take(member, name, folder / f"part-{number}", found, limits)
    return found


def nearest(names: dict[str, object], model: str) -> str | None:
    """Return which of several equally named files belongs to the model: the nearest above it."""
    folder = model.rpartition("/")[0]
    beside = [name for name in names if f"{folder}/".startswith(name.rpartition("/")[0])]
    choice = sorted(beside or names, key=lambda name: (-name.count("/") if beside else 0, name))
    return choice[0] if choice else None


def _take(member: Member, name: str, part: Path, found: Unpacked, limits: Limits) -> None:
    chunks = member.chunks()
    head = _head(chunks)
    base = name.rpartition("/")[2].lower()
    if base == REQUIREMENTS:
        found.requirements[name] = _requirements(head, chunks)
        return
    leading = recognise(head)
    if leading.kind == "tar" or leading.inner == "tar":
        raise InspectionError("archive_nested", name=shown(name))
    if base == "sample.json":
        _write(part, head, chunks, limit=_SAMPLE_BYTES)
        _check_json(part, name)
        found.samples[name] = part
    elif leading.kind == "zip":
        _write(part, head, chunks)
        _take_zip(name, part, found, limits)
    elif leading.kind is not None:
        _write(part, head, chunks)
        found.candidates.append(Candidate(name, part, leading.kind))
    elif base == "sample.npz":
        raise InspectionError("sample_damaged", name=shown(name))
    else:
        for _ in chunks:
            pass


def _take_zip(name: str, part: Path, found: Unpacked, limits: Limits) -> None:
    is_sample = name.rpartition("/")[2].lower() == "sample.npz"
    with part.open("rb") as file:
        try:
            layout = zip_layout(info.filename for info in open_zip(file, limits).infolist())
        except InspectionError:
            if is_sample:
                raise InspectionError("sample_damaged", name=shown(name)) from None
            raise
    if layout == OTHER:
        raise InspectionError("archive_nested", name=shown(name))
    if layout != ARRAYS:
        found.candidates.append(Candidate(name, part, "zip"))
    elif is_sample and part.stat().st_size <= _SAMPLE_BYTES:
        found.samples[name] = part
    elif is_sample:
        raise InspectionError("sample_too_large", limit_mb=_SAMPLE_BYTES // 1024**2)
    else:
        part.unlink()


def _head(chunks: Iterator[bytes]) -> bytes:
    head = b""
    while len(head) < HEAD_BYTES and (chunk := next(chunks, b"")):
        head += chunk
    return head


def _write(part: Path, head: bytes, chunks: Iterator[bytes], limit: int | None = None) -> None:
    size = len(head)
    with part.open("xb") as file:
        file.write(head)
        for chunk in chunks:
            size += len(chunk)
            if limit is not None and size > limit:
                raise InspectionError("sample_too_large", limit_mb=limit // 1024**2)
            file.write(chunk)


def _requirements(head: bytes, chunks: Iterator[bytes]) -> str:
    data = head
    for chunk in chunks:
        data += chunk
        if len(data) > _REQUIREMENTS_BYTES:
            break
    if len(data) > _REQUIREMENTS_BYTES:
        raise InspectionError("requirements_too_large", limit_kb=_REQUIREMENTS_BYTES // 1024)
    # Windows PowerShell writes UTF-16.
    encoding = "utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise InspectionError("requirements_not_text") from None
    if any(ord(letter) < 32 and letter not in "\t\r\n\f" for letter in text):
        raise InspectionError("requirements_not_text")
    return text


def _check_json(part: Path, name: str) -> None:
    try:
        with part.open(encoding="utf-8-sig") as file:
            json.load(file)
    except (ValueError, RecursionError) as error:
        raise InspectionError("sample_damaged", name=shown(name), evidence=str(error)) from None
