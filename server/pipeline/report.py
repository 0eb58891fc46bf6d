"""The report of the inspecting process: checked, since an artifact may have taken it over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.errors import StepFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_FILES = {
    "onnx": ("onnx", "model.onnx"),
    "torchscript": ("torchscript", "model.pt"),
    "pickle": ("sklearn", "model.pkl"),
    "joblib": ("sklearn", "model.joblib"),
}
_SAMPLES = ("sample.npz", "sample.json")
_REQUIREMENTS_CHARS = 256 * 1024
_PACKAGES = 20
_VERSION_CHARS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionReport:
    """What an artifact holds; ``file`` and ``sample`` are names in the model's folder."""

    kind: str
    format: str
    file: str
    sample: str | None = None
    requirements: str | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)


def read_report(said: Mapping[str, Any]) -> InspectionReport:
    """Return a report that names a model, each word of it one that is known.

    Raises:
        StepFailedError: ``inspection_failed``.
    """
    format_, sample = said.get("format"), said.get("sample")
    kind, file = _FILES.get(format_, ("", "")) if isinstance(format_, str) else ("", "")
    if not kind or said.get("kind") != kind or said.get("file") != file:
        raise _wrong("format")
    if sample is not None and sample not in _SAMPLES:
        raise _wrong("sample")
    return InspectionReport(
        kind=kind,
        format=str(format_),
        file=file,
        sample=sample,
        requirements=_requirements(said.get("requirements")),
        made_with=_versions(said.get("made_with") or {}),
    )


def _requirements(said: Any) -> str | None:
    if said is None or (isinstance(said, str) and len(said) <= _REQUIREMENTS_CHARS):
        return said
    raise _wrong("requirements")


def _versions(said: Any) -> dict[str, str]:
    if not isinstance(said, dict) or len(said) > _PACKAGES:
        raise _wrong("made_with")
    for pair in said.items():
        for text in pair:
            if not isinstance(text, str) or len(text) > _VERSION_CHARS:
                raise _wrong("made_with")
    return said


def _wrong(part: str) -> StepFailedError:
    return StepFailedError("inspection_failed", evidence=part)
