"""Takes the files out of an archive, and finds what may be the model, its sample and its requirements.

Our own loop over the members, never ``extractall``; no name of the archive becomes a path. Runs
in the inspecting child too: standard library only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from server.artifacts.arrays import MAGIC, check_npy, check_npz
from server.artifacts.failures import InspectionError
from server.artifacts.limits import Limits, Meter, Names, shown
from server.artifacts.manifests import MANIFEST_BYTES
from server.artifacts.mlflow import MLMODEL
from server.artifacts.recognise import HEAD_BYTES, recognise
from server.artifacts.requested import ENVIRONMENT_FILES, REQUIREMENTS
from server.artifacts.streams import decompressed
from server.artifacts.tars import tar_members
from server.artifacts.torch_zip import ARRAYS, OTHER, zip_layout
from server.artifacts.tripwire import LOOKED_AT_BYTES, check_other
from server.artifacts.triton import CONFIG
from server.artifacts.zips import open_zip

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from server.artifacts.zips import Member

MANIFESTS = frozenset({MLMODEL, CONFIG, *ENVIRONMENT_FILES})
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
    """What was found in an archive, by name.

    ``parts`` are all its files until they are sorted; then ``requirements`` and ``manifests`` are
    texts, ``samples``, ``candidates`` and ``others`` files of the folder.
    """

    members: list[str] = field(default_factory=list)
    parts: dict[str, Path] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    samples: dict[str, Path] = field(default_factory=dict)
    requirements: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, str] = field(default_factory=dict)
    others: dict[str, Path] = field(default_factory=dict)

    def beside(self, candidate: Candidate) -> dict[str, Path]:
        """Return the files below a candidate's folder, by their names from there."""
        folder = candidate.name.rpartition("/")[0]
        prefix = f"{folder}/" if folder else ""
        files = {each.name: each.path for each in self.candidates if each is not candidate}
        return {
            name.removeprefix(prefix): path
            for name, path in {**self.others, **files}.items()
            if name.startswith(prefix)
        }


def members_of(kind: str, file: IO[bytes], meter: Meter) -> Iterator[Member]:
    """Yield the members of a ``zip``, ``tar`` or ``gzip`` (tar.gz).

    Raises:
        InspectionError: the archive breaks a rule or a limit.
    """
    if kind == "zip":
        yield from open_zip(file, meter.limits).members(meter)
    elif kind == "gzip":
        yield from tar_members(decompressed(kind, file), meter)
    else:
        yield from tar_members(file, meter)


def unpack(members: Iterator[Member], folder: Path, limits: Limits) -> Unpacked:
    """Read every member once and write it to a file of our own naming.

    Raises:
        InspectionError: the archive breaks a rule or a limit.
    """
    found = Unpacked()
    names = Names(limits)
    for number, member in enumerate(members):
        name = names.admit(member.name, is_folder=member.is_folder)
        if member.is_folder or not name:
            continue
        found.members.append(name)
        part = found.parts[name] = folder / f"part-{number}"
        with part.open("xb") as file:
            for chunk in member.chunks():
                file.write(chunk)
    return found


def sort_out(found: Unpacked, limits: Limits) -> None:
    """Tell the files of an archive apart, by their content; what is of no use is removed.

    Raises:
        InspectionError: one of them is damaged, too large or an archive of its own.
    """
    for name, part in found.parts.items():
        _sort(name, part, found, limits)
    found.parts.clear()


def nearest(names: Iterable[str], model: str) -> str | None:
    """Return which of several equally named files belongs to the model: the nearest above it."""
    folder = model.rpartition("/")[0]
    found = list(names)
    beside = [
        name for name in found if f"/{folder}/".startswith(f"/{name}".rpartition("/")[0] + "/")
    ]
    choice = sorted(beside or found, key=lambda name: (-name.count("/") if beside else 0, name))
    return choice[0] if choice else None


def _sort(name: str, part: Path, found: Unpacked, limits: Limits) -> None:
    base = name.rpartition("/")[2]
    if base.lower() == REQUIREMENTS:
        found.requirements[name] = requirements_in(part)
        part.unlink()
        return
    if base in MANIFESTS:
        found.manifests[name] = manifest_in(part, name)
        part.unlink()
        return
    leading = recognise(head_of(part))
    if leading.is_archive and leading.kind != "zip":
        raise InspectionError("archive_nested", name=shown(name))
    if base.lower() == "sample.json":
        check_sample(name, part, limits)
        found.samples[name] = part
    elif leading.kind == "zip":
        _sort_zip(name, part, found, limits)
    elif leading.kind is not None:
        found.candidates.append(Candidate(name, part, leading.kind))
    elif base.lower() == "sample.npz":
        raise InspectionError("sample_damaged", name=shown(name))
    else:
        _check_other(part, name)
        found.others[name] = part


def check_sample(name: str, part: Path, limits: Limits) -> None:
    """Check a sample: a text in JSON, or arrays without objects.

    Raises:
        InspectionError: ``sample_damaged``, ``sample_holds_objects`` or ``sample_too_large``.
    """
    if part.stat().st_size > _SAMPLE_BYTES:
        raise InspectionError("sample_too_large", limit_mb=_SAMPLE_BYTES // 1024**2)
    if name.lower().endswith(".json"):
        _check_json(part, name)
        return
    with part.open("rb") as file:
        archive = open_zip(file, limits) if recognise(head_of(part)).kind == "zip" else None
        if archive is None or zip_layout(archive.names) != ARRAYS:
            raise InspectionError("sample_damaged", name=shown(name))
        check_npz(archive, name, Meter(part.stat().st_size, limits), is_sample=True)


def _check_other(part: Path, name: str) -> None:
    """Look into a file that may hold a model's weights; what would be a pickle in it is scanned."""
    with part.open("rb") as file:
        head = file.read(len(MAGIC))
        file.seek(0)
        if head == MAGIC:
            check_npy(file, name)
        else:
            check_other(file.read(LOOKED_AT_BYTES), name)


def _sort_zip(name: str, part: Path, found: Unpacked, limits: Limits) -> None:
    is_sample = name.rpartition("/")[2].lower() == "sample.npz"
    with part.open("rb") as file:
        archive = open_zip(file, limits)
        layout = zip_layout(archive.names)
        if layout == ARRAYS and not is_sample:
            check_npz(archive, name, Meter(part.stat().st_size, limits), is_sample=False)
    if layout == OTHER:
        raise InspectionError("archive_nested", name=shown(name))
    if layout != ARRAYS:
        found.candidates.append(Candidate(name, part, "zip"))
    elif is_sample:
        check_sample(name, part, limits)
        found.samples[name] = part
    else:
        part.unlink()


def head_of(part: Path) -> bytes:
    """Return the first bytes of a file, as many as tell what it is."""
    with part.open("rb") as file:
        return file.read(HEAD_BYTES)


def _bounded(part: Path, limit: int) -> bytes:
    with part.open("rb") as file:
        return file.read(limit + 1)


def requirements_in(part: Path) -> str:
    """Return the text of a requirements.txt.

    Raises:
        InspectionError: ``requirements_too_large`` or ``requirements_not_text``.
    """
    data = _bounded(part, _REQUIREMENTS_BYTES)
    if len(data) > _REQUIREMENTS_BYTES:
        raise InspectionError(
            "requirements_too_large", file=REQUIREMENTS, limit_kb=_REQUIREMENTS_BYTES // 1024
        )
    # Windows PowerShell writes UTF-16.
    encoding = "utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise InspectionError("requirements_not_text") from None
    if any(ord(letter) < 32 and letter not in "\t\r\n\f" for letter in text):
        raise InspectionError("requirements_not_text")
    return text


def manifest_in(part: Path, name: str) -> str:
    """Return the text of a file that describes a model.

    Raises:
        InspectionError: ``manifest_damaged``.
    """
    data = _bounded(part, MANIFEST_BYTES)
    if len(data) > MANIFEST_BYTES:
        raise InspectionError("manifest_damaged", name=shown(name), evidence="too long")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InspectionError("manifest_damaged", name=shown(name), evidence="no text") from None


def _check_json(part: Path, name: str) -> None:
    try:
        with part.open(encoding="utf-8-sig") as file:
            json.load(file)
    except (ValueError, RecursionError) as error:
        raise InspectionError("sample_damaged", name=shown(name), evidence=str(error)) from None
