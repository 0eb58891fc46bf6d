"""Decides what an artifact is, from its content, without running any of it.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from server.artifacts import mlflow, mlflow_code, torch_zip, triton
from server.artifacts.boosters import check_booster
from server.artifacts.code_bundle import root_of, take_bundle
from server.artifacts.exported import check_exported
from server.artifacts.failures import InspectionError
from server.artifacts.limits import Limits, Meter, shown
from server.artifacts.mlflow import MLMODEL
from server.artifacts.onnx_check import FOLDER, MODEL, check_onnx, versions_in
from server.artifacts.recognise import COMPRESSIONS, HEAD_BYTES, recognise
from server.artifacts.requested import requested
from server.artifacts.skops import check_skops
from server.artifacts.streams import decompressed
from server.artifacts.tripwire import LOOKED_AT_BYTES, check_other, scanned_pickle
from server.artifacts.unpack import (
    SAMPLES,
    Candidate,
    Unpacked,
    members_of,
    nearest,
    sort_out,
    unpack,
)
from server.artifacts.zips import open_zip
from server.kinds import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

    from server.artifacts.manifests import Described
    from server.artifacts.pickles import PickleReport
    from server.artifacts.requested import Requested

_DESCRIBERS = {mlflow.MLMODEL: mlflow.described, triton.CONFIG: triton.described}
_MOST_SHOWN = 60
_TOP_MODULES = 5
_NOT_OF_TORCH = {torch_zip.OTHER, torch_zip.ARRAYS}
_FAMILY = ("sklearn", "xgboost", "lightgbm")
"""Packages whose estimators speak scikit-learn's interface."""
# A file beside the model that is none is ignored; these are reasons to take nothing of it.
_FATAL = {"pickle_dangerous", "pickle_cloudpickle", "pickle_scan_failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an artifact holds.

    ``file`` and ``sample`` are names in the output folder; of an artifact that is no archive
    ``file`` is only the name it should get there, its bytes are the artifact's own.
    ``requirements_file`` names the file that asks for them,
    ``requires_python`` is the range of Pythons that it was made for. ``made_with`` tells versions of what
    wrote the model (packages, Python, those of ONNX itself), as far as it says so; ``packages`` are
    further ones that it cannot be loaded without. ``folder`` is where the model lies with its
    further files, before it has its name.
    """

    kind: str
    format: str
    is_archive: bool = False
    sample: str | None = None
    requirements: str | None = None
    requirements_file: str | None = None
    requires_python: str | None = None
    members: tuple[str, ...] = ()
    globals: tuple[str, ...] = ()
    top: str | None = None
    made_with: dict[str, str] | None = None
    packages: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def file(self) -> str:
        """Name of the model's file."""
        return FORMATS[self.format][1]

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
            "requirements_file": self.requirements_file,
            "requires_python": self.requires_python,
            "members": [shown(name) for name in self.members[:_MOST_SHOWN]],
            "globals": [shown(name) for name in self.globals[:_MOST_SHOWN]],
            "top": None if self.top is None else shown(self.top),
            "made_with": self.made_with or {},
            "packages": list(self.packages),
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
            root = root_of(found.members)
            if root is not None:
                return _from_code("code", found, take_bundle(found.parts, root, folder, limits))
            coded = mlflow_code.found_in(found.parts)
            if coded is not None:
                taken = mlflow_code.take(found.parts, coded, folder, limits)
                return _from_code("mlflow", found, taken)
            sort_out(found, limits)
            return _from_archive(found, folder, limits)
        return _judge(artifact, leading.kind, limits)


def _layout(file: IO[bytes], limits: Limits) -> str:
    return torch_zip.zip_layout(open_zip(file, limits).names)


def _from_code(kind: str, found: Unpacked, taken: tuple[Requested, str | None]) -> Report:
    asked, sample = taken
    return Report(
        kind=kind,
        format=kind,
        is_archive=True,
        sample=sample,
        requirements=asked.text,
        requirements_file=asked.file,
        requires_python=asked.requires_python,
        members=tuple(found.members),
        made_with={"python": asked.python} if asked.python else {},
    )


def _from_archive(found: Unpacked, folder: Path, limits: Limits) -> Report:
    said = _described(found)
    candidates = found.candidates
    if said is not None:
        candidates = [each for each in candidates if said.holds(each.name)]
    candidate, report = _the_model(found, candidates, limits)
    if said is not None:
        report = _as_described(report, said)
    if candidate is None or report is None:
        names = [shown(name) for name in found.members[:_MOST_SHOWN]]
        raise InspectionError("archive_no_model", members=names)
    if report.folder is None:
        candidate.path.rename(folder / report.file)
    else:
        report.folder.rename((folder / report.file).parent)
    sample = _keep_sample(found, candidate.name, folder)
    candidates_left = (other.path for other in found.candidates)
    for leftover in [*found.samples.values(), *candidates_left, *found.others.values()]:
        leftover.unlink(missing_ok=True)
    for leftover in folder.glob(f"*{FOLDER}"):
        shutil.rmtree(leftover)
    asked = requested(
        found.requirements,
        found.manifests,
        partial(nearest, model=candidate.name),
        is_mlflow=said is not None and said.manifest == MLMODEL,
    )
    python = {"python": asked.python} if asked.python else {}
    return replace(
        report,
        is_archive=True,
        sample=sample,
        requirements=asked.text,
        requirements_file=asked.file,
        requires_python=asked.requires_python,
        made_with={**(report.made_with or {}), **python},
        members=tuple(found.members),
    )


def _described(found: Unpacked) -> Described | None:
    names = sorted(name for name in found.manifests if name.rpartition("/")[2] in _DESCRIBERS)
    if len(names) > 1:
        raise InspectionError("archive_several_models", models=[shown(name) for name in names])
    if not names:
        return None
    describe = _DESCRIBERS[names[0].rpartition("/")[2]]
    return describe(names[0], found.manifests[names[0]], found.members)


def _as_described(report: Report | None, said: Described) -> Report:
    """Join what a manifest says with what its file is.

    Raises:
        InspectionError: ``manifest_file_differs``.
    """
    if report is None or report.kind not in said.kinds:
        raise InspectionError(
            "manifest_file_differs",
            manifest=said.manifest,
            name=shown(said.data),
            kinds=list(said.kinds),
        )
    return replace(report, made_with={**said.made_with, **(report.made_with or {})})


def _the_model(
    found: Unpacked, candidates: list[Candidate], limits: Limits
) -> tuple[Candidate | None, Report | None]:
    """Return the one candidate that is a model; files that are none do not count beside it."""
    models: list[tuple[Candidate, Report]] = []
    failure: InspectionError | None = None
    for candidate in candidates:
        try:
            report = _judge_member(found, candidate, limits)
        except InspectionError as error:
            if error.code in _FATAL:
                raise
            failure = failure or error
        else:
            models.append((candidate, report))
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
        chosen = nearest(named, model)
        if chosen is not None:
            named[chosen].rename(folder / sample)
            return sample
    return None


def _judge_member(found: Unpacked, candidate: Candidate, limits: Limits) -> Report:
    if candidate.kind == "onnx":
        folder = check_onnx(candidate.path, found.beside(candidate))
        if folder is not None:
            wrote = versions_in(folder / MODEL)
            return Report(kind="onnx", format="onnx_folder", folder=folder, made_with=wrote)
        return Report(kind="onnx", format="onnx", made_with=versions_in(candidate.path))
    return _judge(candidate.path, candidate.kind, limits, candidate.name)


def _judge(path: Path, kind: str, limits: Limits, name: str = "") -> Report:
    if kind == "onnx":
        check_onnx(path)
        return Report(kind="onnx", format="onnx", made_with=versions_in(path))
    if kind in {"xgboost", "lightgbm"}:
        return Report(kind=kind, format=kind, made_with=check_booster(path, kind))
    meter = Meter(path.stat().st_size, limits)
    with path.open("rb") as file:
        if kind == "zip":
            return _judge_zip(file, limits, meter)
        if kind in COMPRESSIONS:
            return _judge_pickle(decompressed(kind, file, meter), name, compression=kind)
        return _judge_pickle(file, name)


def _judge_zip(file: IO[bytes], limits: Limits, meter: Meter) -> Report:
    archive = open_zip(file, limits)
    layout = torch_zip.zip_layout(archive.names)
    if layout == torch_zip.SKOPS:
        return Report(kind="skops", format="skops", made_with=check_skops(archive, meter))
    if layout == torch_zip.EXPORTED:
        made_with = check_exported(archive, meter)
        return Report(kind="torch_export", format="torch_export", made_with=made_with)
    saved = torch_zip.check_members(archive, meter)
    if layout != torch_zip.TORCHSCRIPT:
        torch_zip.refuse_saved(saved.data)
    made_with = torch_zip.made_with(archive, saved)
    return Report(kind="torchscript", format="torchscript", made_with=made_with)


def _judge_pickle(stream: IO[bytes], name: str, compression: str = "") -> Report:
    if compression:
        inner = recognise(stream.peek(HEAD_BYTES)[:HEAD_BYTES])  # type: ignore[attr-defined]
        if inner.kind != "pickle":
            raise InspectionError("artifact_type_unsupported", found=inner.found)
    report = scanned_pickle(stream, name)
    if report.value == torch_zip.LEGACY_MAGIC:
        # Then come the protocol's version and facts about the system, each a pickle.
        scanned_pickle(stream, name)
        scanned_pickle(stream, name)
        torch_zip.refuse_saved_pickle(scanned_pickle(stream, name))
    if rest := stream.read(LOOKED_AT_BYTES):
        check_other(rest, name)
        raise InspectionError("pickle_extra_bytes")
    family = _family(report)
    return Report(
        kind="sklearn",
        format="joblib" if compression or report.has_joblib_arrays else "pickle",
        globals=report.globals,
        top=report.top,
        made_with=_made_with(report),
        packages=(*family[1:], *(["lz4"] if compression == "lz4" else [])),
    )


def _family(report: PickleReport) -> list[str]:
    """Return which packages of scikit-learn's family a pickle needs, scikit-learn first."""
    modules = Counter(name.partition(".")[0] for name in report.globals)
    if not any(package in modules for package in _FAMILY):
        top = [name for name, _ in modules.most_common(_TOP_MODULES)]
        raise InspectionError("pickle_not_sklearn", modules=top or [report.top])
    return ["sklearn", *(package for package in _FAMILY[1:] if package in modules)]


def _made_with(report: PickleReport) -> dict[str, str]:
    """Return which scikit-learn wrote a pickle, and whether its arrays are of numpy 2."""
    made_with = {}
    version = report.sklearn_version
    if version and _is_version(version):
        made_with["scikit-learn"] = version
    if any(name.startswith("numpy._core.") for name in report.globals):
        made_with["numpy"] = "2"
    return made_with


def _is_version(text: str) -> bool:
    return len(text) < 40 and text[:1].isdigit() and text.isascii()
