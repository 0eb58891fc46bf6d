"""What a model's environment has to hold, before any version is resolved."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from server.environments.onnx_readers import READERS, fitting_reader
from server.environments.requirements import parse_requirements
from server.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

CPU = "cpu"
CUDA = "cuda"

FURTHER: dict[str, str] = {
    "lightgbm": "lightgbm==4.7.0",
    "lz4": "lz4==4.4.5",
    "xgboost": "xgboost==3.2.0",
}
"""Packages that some models of a kind cannot be loaded without."""

# The two builds of onnxruntime are released apart; the extras bring the CUDA libraries.
_ONNX_ON_CUDA = "onnxruntime-gpu[cuda,cudnn]==1.31.1"

# Loading goes through its reader: an older one calls plain pickle.load for nested arrays.
_FLOORS = {"joblib": "joblib>=1.6"}
# The last release for Python 3.9; the model server's own reader keeps it from that, too.
_FLOORS_OF_OLD_PYTHONS = {"joblib": "joblib>=1.5"}
_NEW_ENOUGH_PYTHON = Version("3.10")

_OF_SKLEARN = frozenset({"sklearn", "skops"})
# Newer releases of these read what older ones wrote: kind -> package.
_FORWARD_ONLY = {"xgboost": "xgboost", "torch_export": "torch"}
_TORCH_FAMILY = frozenset({"torch", "torchvision", "torchaudio"})

# Of the frameworks that are compiled against numpy: older ones do not work with numpy 2 either.
_FIRST_WITH_NUMPY_2 = {
    "onnxruntime": Version("1.19"),
    "onnxruntime-gpu": Version("1.19"),
    "torch": Version("2.3"),
}
# scikit-learn before this one was built against numpy 1 without saying so in its metadata.
_SKLEARN_WITH_NUMPY_2 = Version("1.5")
# Older ones use names that these libraries have dropped since.
_OLD_SKLEARN = Version("1.2")
_CAPS_OF_OLD_SKLEARN = ("numpy<1.24", "scipy<1.10")
# The first that can read arrays which numpy 2 has pickled.
_READS_NUMPY_2 = "numpy>=1.26.1"
_FIRST_XGBOOST_CPU = Version("2.1.2")
# Releases that are tried to tell what a range of versions admits.
_FAR_AHEAD, _MOST_MINORS, _MOST_PATCHES = "9999", 60, 10
_BUILDS_OF_ONE = {"xgboost-cpu": "xgboost", "mlflow-skinny": "mlflow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentPlan:
    """Requirements of one model's environment; those of the model server are added to them.

    ``is_pinned`` tells whether everything the upload asked for is an exact version. ``replaced``
    lists what it asked for and does not get, with what it gets instead. ``matched`` is the version
    of scikit-learn that wrote the model, where that one is taken; ``has_requests`` tells whether
    the upload asked for anything.
    """

    kind: str
    device: str
    requirements: tuple[str, ...]
    is_pinned: bool = True
    replaced: tuple[tuple[str, str], ...] = ()
    matched: str = ""
    has_requests: bool = False


def plan(
    kind: str,
    fmt: str,
    requirements_text: str | None,
    device: str,
    made_with: Mapping[str, str] | None = None,
    packages: Iterable[str] = (),
    python: str | None = None,
    *,
    file: str = "requirements.txt",
) -> EnvironmentPlan:
    """Return what the environment of a model of this kind needs.

    A package that ``requirements_text`` asks for in some version replaces the default of the
    same name. ``made_with`` tells versions that wrote the model, which are taken where the
    upload asks for none; ``packages`` are keys of ``FURTHER``. ``device`` is ``cpu`` or
    ``cuda``, ``python`` the version of the interpreter, by default the service's own; ``file``
    names where the requirements come from.

    Raises:
        StepFailedError: a line of the requirements is refused; ``onnx_opset_too_new``.
        ValueError: there is no such kind or device.
    """
    if kind not in KINDS or device not in {CPU, CUDA}:
        raise ValueError(f"{kind}/{fmt} on {device}")
    asked = parse_requirements(requirements_text or "", python, file)
    made_with = made_with or {}
    floors = _floors(python)
    chosen, replaced = _chosen(kind, device, asked, floors)
    settled = {_name(requirement) for requirement in chosen if requirement.specifier}
    chosen += _defaults(kind, device, settled, made_with, floors)
    chosen += _further(device, chosen, packages)
    chosen += _caps(kind, chosen, made_with)
    chosen += _readers(kind, chosen, made_with)
    matched = _written_by(made_with) if kind in _OF_SKLEARN else None
    return EnvironmentPlan(
        kind=kind,
        device=device,
        requirements=tuple(sorted({str(requirement) for requirement in chosen})),
        is_pinned=all(_exact(requirement) is not None for requirement in asked),
        replaced=tuple(replaced),
        matched="" if matched is None or "scikit-learn" in settled else str(matched),
        has_requests=bool(asked),
    )


def _floors(python: str | None) -> dict[str, str]:
    is_old = python is not None and Version(python) < _NEW_ENOUGH_PYTHON
    return {**_FLOORS, **(_FLOORS_OF_OLD_PYTHONS if is_old else {})}


def _chosen(
    kind: str, device: str, asked: Iterable[Requirement], floors: Mapping[str, str]
) -> tuple[list[Requirement], list[tuple[str, str]]]:
    chosen, replaced = [], []
    owned = {_name(Requirement(text)) for text in KINDS[kind].packages}
    for requirement in asked:
        name = _name(requirement)
        used = _for_device(requirement, device)
        if name in floors and name in owned:
            used = Requirement(floors[name])
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
    if name == "xgboost-cpu" and device == CUDA:
        return _renamed(requirement, "xgboost")
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
    kind: str,
    device: str,
    settled: AbstractSet[str],
    made_with: Mapping[str, str],
    floors: Mapping[str, str],
) -> list[Requirement]:
    """Return the packages of a kind but for those whose version the upload has settled.

    A bare name in it asks for no version in particular: the default is as good as any.
    """
    defaults = KINDS[kind].packages
    if kind == "onnx" and device == CUDA:
        defaults = (_ONNX_ON_CUDA,)
    if kind in _OF_SKLEARN:
        wrote = _written_by(made_with)
        defaults = (defaults[0] if wrote is None else f"scikit-learn=={wrote}", *defaults[1:])
    if kind in _FORWARD_ONLY:
        wrote_it = made_with.get(_FORWARD_ONLY[kind])
        defaults = (_at_least(defaults[0], wrote_it), *defaults[1:])
    wanted = [_for_device(Requirement(text), device) for text in defaults]
    wanted = [Requirement(floors.get(_name(each), str(each))) for each in wanted]
    return [each for each in wanted if _builds_of(_name(each)).isdisjoint(settled)]


def _builds_of(name: str) -> set[str]:
    return {name, _BUILDS_OF_ONE.get(name, name)}


def _at_least(default: str, wrote: str | None) -> str:
    """Ask for the default release, or for the one that wrote the file if that is newer."""
    requirement = Requirement(default)
    try:
        version = Version(wrote or "")
        newer = version > (_exact(requirement) or Version("0")) and not version.is_prerelease
    except InvalidVersion:
        newer = False
    return f"{requirement.name}=={wrote}" if newer else default


def _further(
    device: str, chosen: Iterable[Requirement], packages: Iterable[str]
) -> list[Requirement]:
    settled = {_name(requirement) for requirement in chosen if requirement.specifier}
    settled = {_BUILDS_OF_ONE.get(name, name) for name in settled}
    return [
        _for_device(Requirement(FURTHER[package]), device)
        for package in packages
        if package not in settled
    ]


def _written_by(made_with: Mapping[str, str]) -> Version | None:
    """Return the release that wrote the model: pickles are only sure to load in that one."""
    try:
        wrote = Version(made_with.get("scikit-learn", ""))
    except InvalidVersion:
        return None
    return None if wrote.is_prerelease or wrote.local else wrote


def _caps(
    kind: str, chosen: Iterable[Requirement], made_with: Mapping[str, str]
) -> list[Requirement]:
    """Add limits that old releases forgot to state, and those of numpy's layout in a pickle."""
    asked = {_name(requirement): requirement for requirement in chosen}
    if kind not in _OF_SKLEARN:
        is_old = any(
            name in asked and _is_before(asked[name], first)
            for name, first in _FIRST_WITH_NUMPY_2.items()
        )
        return [Requirement("numpy<2")] if is_old and not _is_settled("numpy", asked) else []
    version = _exact(asked["scikit-learn"]) if "scikit-learn" in asked else None
    caps = [_READS_NUMPY_2] if made_with.get("numpy") == "2" else []
    if version is not None and version < _OLD_SKLEARN:
        caps += _CAPS_OF_OLD_SKLEARN
    elif version is not None and version < _SKLEARN_WITH_NUMPY_2:
        caps.append("numpy<2")
    wanted = [Requirement(text) for text in caps]
    return [each for each in wanted if not _is_settled(_name(each), asked)]


def _is_settled(name: str, asked: Mapping[str, Requirement]) -> bool:
    return name in asked and bool(asked[name].specifier)


def _is_before(requirement: Requirement, first: Version) -> bool:
    """Tell whether only releases before ``first`` are asked for."""
    exact, asked = _exact(requirement), requirement.specifier
    if exact is not None or not asked:
        return exact is not None and exact < first
    numbers = product(range(first.minor, _MOST_MINORS), range(_MOST_PATCHES))
    later = (f"{first.major}.{minor}.{patch}" for minor, patch in numbers)
    return not asked.contains(_FAR_AHEAD) and not any(map(asked.contains, later))


def _readers(
    kind: str, chosen: Iterable[Requirement], made_with: Mapping[str, str]
) -> list[Requirement]:
    """Add from which release of onnxruntime on an ONNX model can be read."""
    if kind != "onnx":
        return []
    readers = [requirement for requirement in chosen if _name(requirement) in READERS]
    missing = [(each.name, fitting_reader(each, made_with)) for each in readers]
    return [Requirement(f"{name}{specifier}") for name, specifier in missing if specifier]


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
