"""Decides what an artifact is, from its content, without running any of it.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from server.artifacts import torch_zip
from server.artifacts.failures import InspectionError
from server.artifacts.limits import Limits, Meter, shown
from server.artifacts.onnx_wire import check_onnx
from server.artifacts.pickles import PickleReport, read_pickle
from server.artifacts.recognise import COMPRESSIONS, HEAD_BYTES, recognise
from server.artifacts.streams import decompressed
from server.artifacts.unpack import SAMPLES, Candidate, Unpacked, members_of, nearest, unpack
from server.artifacts.zips import open_zip

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "onnx": "model.onnx",
    "torchscript": "model.pt",
    "pickle": "model.pkl",
    "joblib": "model.joblib",
}
"""Name of the model's file by its format; names from outside never become paths."""

_MOST_SHOWN = 60
_TOP_MODULES = 5
_NOT_OF_TORCH = {torch_zip.OTHER, torch_zip.ARRAYS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an artifact holds.

    ``file`` and ``sample`` are names in the output folder; of an artifact that is no archive
    ``file`` is only the name it should get there, its bytes are the artifact's own.
    ``made_with`` tells versions of packages that wrote the model, as far as it says so.
    """

    kind: str
    format: str
    is_archive: bool = False
    sample: str | None = None
    requirements: str | None = None
    members: tuple[str, ...] = ()
    globals: tuple[str, ...] = ()
    top: str | None = None
    made_with: dict[str, str] | None = None

    @property
    def file(self) -> str:
        """Name of the model's file."""
        return FILES[self.format]

    def as_json(self) -> dict[str, Any]:
        """Return the report's JSON object; long lists are cut."""
        return {
            "ok": True,
            "kind": self.kind,
            "format": self.format,
            "file": self.file,
            "archive": self.is_archive,
            "sample": self.sample,
            "requirements": self.requirements,
            "members": [shown(name) for name in self.members[:_MOST_SHOWN]],
            "globals": [shown(name) for name in self.globals[:_MOST_SHOWN]],
            "top": None if self.top is None else shown(self.top),
            "made_with": self.made_with or {},
        }


def inspect(artifact: Path, folder: Path, limits: Limits | None = None) -> Report:
    """Say what ``artifact`` is; the parts of an archive are put into the empty ``folder``.

    Raises:
        InspectionError: it cannot be taken, for a cause that has a name.
        OSError: a file cannot be read or written.
    """
    limits = limits or Limits()
    with artifact.open("rb") as file:
        leading = recognise(file.read(HEAD_BYTES))
        if leading.kind is None:
            raise InspectionError("artifact_type_unsupported", found=leading.found)
        meter = Meter(artifact.stat().st_size, limits)
        file.seek(0)
        is_tar = leading.kind == "tar" or leading.inner == "tar"
        if is_tar or (leading.kind == "zip" and _layout(file, limits) in _NOT_OF_TORCH):
            file.seek(0)
            kind = leading.kind
            found = unpack(members_of(kind, file, meter), folder, limits)
            return _from_archive(found, folder, limits)
        return _judge(artifact, leading.kind, limits)


def _layout(file: IO[bytes], limits: Limits) -> str:
    return torch_zip.zip_layout(info.filename for info in open_zip(file, limits).infolist())


def _from_archive(found: Unpacked, folder: Path, limits: Limits) -> Report:
    candidate, report = _the_model(found.candidates, limits)
    if candidate is None or report is None:
        names = [shown(name) for name in found.members[:_MOST_SHOWN]]
        raise InspectionError("archive_no_model", members=names)
    candidate.path.rename(folder / report.file)
    sample = _keep_sample(found, candidate.name, folder)
    for leftover in [*found.samples.values(), *(other.path for other in found.candidates)]:
        leftover.unlink(missing_ok=True)
    requirements = nearest(dict(found.requirements), candidate.name)
    return replace(
        report,
        is_archive=True,
        sample=sample,
        requirements=None if requirements is None else found.requirements[requirements],
        members=tuple(found.members),
    )


def _the_model(
    candidates: list[Candidate], limits: Limits
) -> tuple[Candidate | None, Report | None]:
    """Return the one candidate that is a model; files that are none do not count beside it."""
    models: list[tuple[Candidate, Report]] = []
    failure: InspectionError | None = None
    for candidate in candidates:
        try:
            models.append((candidate, _judge(candidate.path, candidate.kind, limits)))
        except InspectionError as error:
            failure = failure or error
    if len(models) > 1:
        names = [shown(candidate.name) for candidate, _ in models[:_MOST_SHOWN]]
        raise InspectionError("archive_several_models", models=names)
    if models:
        return models[0]
    if failure is not None:
        raise failure
    return None, None


def _keep_sample(found: Unpacked, model: str, folder: Path) -> str | None:
    for sample in SAMPLES:
        named = {
            name: path
            for name, path in found.samples.items()
            if name.rpartition("/")[2].lower() == sample
        }
        chosen = nearest(dict(named), model)
        if chosen is not None:
            named[chosen].rename(folder / sample)
            return sample
    return None


def _judge(path: Path, kind: str, limits: Limits) -> Report:
    with path.open("rb") as file:
        if kind == "onnx":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                check_onnx(data)
            return Report(kind="onnx", format="onnx")
        meter = Meter(path.stat().st_size, limits)
        if kind == "zip":
            return _judge_zip(file, limits, meter)
        if kind in COMPRESSIONS:
            return _judge_pickle(decompressed(kind, file, meter), is_compressed=True)
        return _judge_pickle(file, is_compressed=False)


def _judge_zip(file: IO[bytes], limits: Limits, meter: Meter) -> Report:
    archive = open_zip(file, limits)
    layout = torch_zip.zip_layout(archive.namelist())
    if layout == torch_zip.EXPORTED:
        raise InspectionError("exported_program_not_torchscript")
    if layout != torch_zip.TORCHSCRIPT:
        torch_zip.refuse_saved(archive)
    torch_zip.check_torchscript(file, limits, meter)
    return Report(kind="torchscript", format="torchscript")


def _judge_pickle(stream: IO[bytes], *, is_compressed: bool) -> Report:
    if is_compressed:
        inner = recognise(stream.peek(HEAD_BYTES)[:HEAD_BYTES])  # type: ignore[attr-defined]
        if inner.kind != "pickle":
            raise InspectionError("artifact_type_unsupported", found=inner.found)
    report = read_pickle(stream)
    if report.value == torch_zip.LEGACY_MAGIC:
        # Then come the protocol's version and facts about the system, each a pickle.
        read_pickle(stream)
        read_pickle(stream)
        torch_zip.refuse_saved_pickle(read_pickle(stream))
    if stream.read(1):
        raise InspectionError("pickle_extra_bytes")
    _check_is_sklearn(report)
    version = report.sklearn_version
    return Report(
        kind="sklearn",
        format="joblib" if is_compressed or report.has_joblib_arrays else "pickle",
        globals=report.globals,
        top=report.top,
        made_with={"scikit-learn": version} if version and _is_version(version) else None,
    )


def _check_is_sklearn(report: PickleReport) -> None:
    modules = Counter(name.partition(".")[0] for name in report.globals)
    if "sklearn" not in modules:
        top = [name for name, _ in modules.most_common(_TOP_MODULES)]
        raise InspectionError("pickle_not_sklearn", modules=top or [report.top])


def _is_version(text: str) -> bool:
    return len(text) < 40 and text[:1].isdigit() and text.isascii()
