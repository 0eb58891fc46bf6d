"""What a model's environment has to hold, before any version is resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from server.environments.requirements import parse_requirements

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CPU = "cpu"
CUDA = "cuda"

DEFAULTS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnxruntime==1.32.0",),
    "torchscript": ("torch==2.13.0", "numpy"),
    "sklearn": ("scikit-learn==1.9.1", "joblib>=1.6", "scipy", "numpy"),
}
"""Packages that run a kind of model, where the upload says nothing else."""

# The two builds of onnxruntime are released apart; the extras bring the CUDA libraries.
_ONNX_ON_CUDA = "onnxruntime-gpu[cuda,cudnn]==1.31.1"

# Loading goes through its reader: an older one calls plain pickle.load for nested arrays.
_FLOORS = {"joblib": "joblib>=1.6"}

_TORCH_FAMILY = frozenset({"torch", "torchvision", "torchaudio"})

# scikit-learn before this one was built against numpy 1 without saying so in its metadata.
_SKLEARN_WITH_NUMPY_2 = Version("1.5")
_OLDEST_MATCHED_SKLEARN = Version("1.3")
_FIRST_XGBOOST_CPU = Version("2.1.2")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentPlan:
    """Requirements of one model's environment; those of the model server are added to them.

    ``is_pinned`` tells whether everything the upload asked for is an exact version. ``replaced``
    lists what it asked for and does not get, with what it gets instead.
    """

    kind: str
    device: str
    requirements: tuple[str, ...]
    is_pinned: bool = True
    replaced: tuple[tuple[str, str], ...] = ()


def plan(
    kind: str,
    fmt: str,
    requirements_text: str | None,
    device: str,
    made_with: Mapping[str, str] | None = None,
) -> EnvironmentPlan:
    """Return what the environment of a model of this kind needs.

    A package that ``requirements_text`` asks for in some version replaces the default of the
    same name. ``made_with`` tells versions that wrote the model, which are taken where the
    upload asks for none. ``device`` is ``cpu`` or ``cuda``.

    Raises:
        StepFailedError: a line of the requirements is refused.
        ValueError: there is no such kind or device.
    """
    if kind not in DEFAULTS or device not in {CPU, CUDA}:
        raise ValueError(f"{kind}/{fmt} on {device}")
    asked = parse_requirements(requirements_text or "")
    chosen, replaced = _chosen(kind, device, asked)
    chosen += _defaults(kind, device, chosen, made_with or {})
    chosen += _caps(kind, chosen)
    return EnvironmentPlan(
        kind=kind,
        device=device,
        requirements=tuple(sorted({str(requirement) for requirement in chosen})),
        is_pinned=all(_exact(requirement) is not None for requirement in asked),
        replaced=tuple(replaced),
    )


def _chosen(
    kind: str, device: str, asked: Iterable[Requirement]
) -> tuple[list[Requirement], list[tuple[str, str]]]:
    chosen, replaced = [], []
    owned = {_name(Requirement(text)) for text in DEFAULTS[kind]}
    for requirement in asked:
        name = _name(requirement)
        used = _for_device(requirement, device)
        if name in _FLOORS and name in owned:
            used = Requirement(_FLOORS[name])
        if str(used) != str(requirement):
            replaced.append((str(requirement), str(used)))
        chosen.append(used)
    return chosen, replaced


def _for_device(requirement: Requirement, device: str) -> Requirement:
    """Return the build of a package that fits the device, where there are several."""
    name = _name(requirement)
    if name in _TORCH_FAMILY:
        return _without_local_version(requirement)
    if name == "onnxruntime-gpu" and device == CPU:
        return _renamed(requirement, "onnxruntime")
    if name == "onnxruntime" and device == CUDA:
        return _renamed(requirement, "onnxruntime-gpu[cuda,cudnn]")
    if name == "xgboost" and device == CPU:
        version = _exact(requirement)
        if version is None or version >= _FIRST_XGBOOST_CPU:
            return _renamed(requirement, "xgboost-cpu")
    return requirement


def _without_local_version(requirement: Requirement) -> Requirement:
    """``torch==2.4.0+cu121`` names a build of the uploader's machine, not of this one."""
    version = _exact(requirement)
    if version is None or version.local is None:
        return requirement
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return Requirement(f"{requirement.name}{extras}=={version.public}")


def _renamed(requirement: Requirement, name: str) -> Requirement:
    return Requirement(f"{name}{requirement.specifier}")


def _defaults(
    kind: str, device: str, chosen: Iterable[Requirement], made_with: Mapping[str, str]
) -> list[Requirement]:
    # A bare name asks for no version in particular: the default is as good as any.
    settled = {_name(requirement) for requirement in chosen if requirement.specifier}
    defaults = DEFAULTS[kind]
    if kind == "onnx" and device == CUDA:
        defaults = (_ONNX_ON_CUDA,)
    if kind == "sklearn":
        matched = _matching_sklearn(made_with.get("scikit-learn"))
        defaults = (matched or defaults[0], *defaults[1:])
    wanted = [Requirement(text) for text in defaults]
    return [requirement for requirement in wanted if _name(requirement) not in settled]


def _matching_sklearn(version: str | None) -> str | None:
    """Ask for the release that wrote the model: pickles are only sure to load in that one."""
    try:
        wrote = Version(version or "")
    except InvalidVersion:
        return None
    if wrote < _OLDEST_MATCHED_SKLEARN or wrote.is_prerelease or wrote.local:
        return None
    return f"scikit-learn=={wrote}"


def _caps(kind: str, chosen: Iterable[Requirement]) -> list[Requirement]:
    """Add limits that old releases forgot to state."""
    if kind != "sklearn":
        return []
    asked = {_name(requirement): requirement for requirement in chosen}
    version = _exact(asked["scikit-learn"]) if "scikit-learn" in asked else None
    numpy = asked.get("numpy")
    if version is None or version >= _SKLEARN_WITH_NUMPY_2 or (numpy and numpy.specifier):
        return []
    return [Requirement("numpy<2")]


def _exact(requirement: Requirement) -> Version | None:
    """Return the one version that a requirement admits, if it names it."""
    for specifier in SpecifierSet(str(requirement.specifier)):
        if specifier.operator in {"==", "==="} and not specifier.version.endswith(".*"):
            try:
                return Version(specifier.version)
            except InvalidVersion:
                return None
    return None


def _name(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)
