"""The report of the inspecting process: checked, since an artifact may have taken it over."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from server.artifacts.requested import ENVIRONMENT_FILES, REQUIREMENTS
from server.environments.plan import FURTHER, plan
from server.errors import StepFailedError
from server.kinds import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from server.environments.plan import EnvironmentPlan
    from server.environments.pythons import Python
    from server.records import Params

_SAMPLES = ("sample.npz", "sample.json")
_REQUIREMENTS_CHARS = 256 * 1024
_VERSIONS = 20
_VERSION_CHARS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionReport:
    """What an artifact holds; ``file`` and ``sample`` are names in the model's folder."""

    kind: str
    format: str
    file: str
    sample: str | None = None
    requirements: str | None = None
    requirements_file: str = REQUIREMENTS
    requires_python: str = ""
    made_with: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


def read_report(said: Mapping[str, Any]) -> InspectionReport:
    """Return a report that names a model, each word of it one that is known.

    Raises:
        StepFailedError: ``inspection_failed``.
    """
    format_, sample = said.get("format"), said.get("sample")
    kind, file = FORMATS.get(format_, ("", "")) if isinstance(format_, str) else ("", "")
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
        requirements_file=_requirements_file(said.get("requirements_file")),
        requires_python=_range(said.get("requires_python")),
        made_with=_versions(said.get("made_with") or {}),
        packages=_further(said.get("packages") or []),
    )


def planner(report: InspectionReport, device: str) -> Callable[[str], EnvironmentPlan]:
    """Return what makes the plan of a model's environment for a version of Python."""
    return partial(
        plan,
        report.kind,
        report.format,
        report.requirements,
        device,
        report.made_with,
        report.packages,
        file=report.requirements_file,
    )


def other_python(wrote: str, used: Python) -> list[Params]:
    """Return a warning if a model was made with another minor version of Python than it gets."""
    if not wrote or wrote.split(".")[:2] == used.minor.split("."):
        return []
    return [{"code": "python_differs", "params": {"wanted": wrote, "found": used.version}}]


def _requirements(said: Any) -> str | None:
    if said is None or (isinstance(said, str) and len(said) <= _REQUIREMENTS_CHARS):
        return said
    raise _wrong("requirements")


def _requirements_file(said: Any) -> str:
    if said is None:
        return REQUIREMENTS
    if said == REQUIREMENTS or said in ENVIRONMENT_FILES:
        return str(said)
    raise _wrong("requirements_file")


def _range(said: Any) -> str:
    if said is None:
        return ""
    if not isinstance(said, str) or len(said) > _VERSION_CHARS:
        raise _wrong("requires_python")
    try:
        return str(SpecifierSet(said))
    except InvalidSpecifier:
        raise _wrong("requires_python") from None


def _versions(said: Any) -> dict[str, str]:
    if not isinstance(said, dict) or len(said) > _VERSIONS:
        raise _wrong("made_with")
    for pair in said.items():
        for text in pair:
            if not isinstance(text, str) or len(text) > _VERSION_CHARS:
                raise _wrong("made_with")
    return said


def _further(said: Any) -> tuple[str, ...]:
    if not isinstance(said, list) or not all(name in FURTHER for name in map(str, said)):
        raise _wrong("packages")
    return tuple(dict.fromkeys(map(str, said)))


def _wrong(part: str) -> StepFailedError:
    return StepFailedError("inspection_failed", evidence=part)
