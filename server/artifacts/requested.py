"""Reads which packages and which Python an upload asks for, from the files that say so.

Runs in the inspecting child too: the standard library and PyYAML.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.artifacts import poetry
from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.manifests import read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

REQUIREMENTS = "requirements.txt"
PYTHON_ENV = "python_env.yaml"
PYPROJECT = "pyproject.toml"
CONDA = ("conda.yaml", "environment.yml", "environment.yaml")

ENVIRONMENT_FILES = frozenset({*CONDA, PYTHON_ENV, PYPROJECT})
"""Names of the files, beside requirements.txt, that say what a model needs."""

_VERSION = re.compile(r"\d{1,4}(?:\.\d{1,6}){1,3}")
_CONDA_PYTHON = re.compile(
    r"(?:[\w.-]+::)?python\s*(?:={1,2}|(?<=\s))\s*(\d+\.\d+(?:\.\d+)?)(?:\.?\*|[=\s].*)?"
)
# What runs models, by conda's name for it. Most else there is no package of Python's index.
_OF_CONDA = {
    **{name: name for name in ("joblib", "lightgbm", "lz4", "numpy", "onnxruntime", "pandas")},
    **{name: name for name in ("scikit-learn", "scipy", "skops", "torchvision", "xgboost")},
    "py-xgboost": "xgboost",
    "pytorch": "torch",
}
_MATCH = re.compile(r"(?:[\w.-]+::)?(?P<name>[A-Za-z0-9][\w.-]*)\s*(?P<version>[<>=!~\d].*)?")
_ONE_VERSION = re.compile(r"(?P<mark>={0,2})\s*(?P<version>\d[\w.]*?)(?P<any>\.?\*)?(?:[=\s].*)?")
_RANGE = re.compile(r"(?:[<>!]=?|~=)\s*\d[\w.]*(?:\s*,\s*(?:[<>!]=?|~=)\s*\d[\w.]*)*")
_PART_OF_RANGE = re.compile(
    r"(?:[<>]=?\s*\d+(?:\.\d+)*|~=\s*\d+(?:\.\d+)+|[!=]=\s*\d+(?:\.\d+)*(?:\.\*)?)"
)
_RANGE_CHARS = 100
_OF_POETRY = ("tool", "poetry", "dependencies")
_NUMBERS_OF_A_RELEASE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """What an upload asks for: requirements, one a line, and the file that holds them.

    ``python`` is the version that its model was made with, ``requires_python`` a range as
    ``>=3.10,<3.12`` that it has to lie in.
    """

    text: str | None = None
    file: str | None = None
    python: str | None = None
    requires_python: str | None = None


def requested(
    requirements: Mapping[str, str],
    manifests: Mapping[str, str],
    nearest: Callable[[Iterable[str]], str | None],
    *,
    is_mlflow: bool,
) -> Requested:
    """Return what the files of an archive ask for; the first that names a package counts.

    ``requirements`` and ``manifests`` are texts by their names in the archive; ``nearest`` tells
    which of several names belongs to the model.

    Raises:
        InspectionError: ``manifest_damaged``.
    """

    def first(*names: str) -> tuple[str, str]:
        for name in names:
            said = nearest(each for each in manifests if each.rpartition("/")[2] == name)
            if said is not None:
                return name, manifests[said]
        return names[0], ""

    python_env, conda = first(PYTHON_ENV)[1], first(*CONDA)
    python = _python_of_venv(python_env) or _python_of_conda(*conda)
    name = nearest(requirements)
    found = [(REQUIREMENTS, "" if name is None else requirements[name])]
    if name is None or not _names_packages(requirements[name]):
        found = [
            (conda[0], _lines(_of_conda(*conda))),
            (PYTHON_ENV, _lines(_of_venv(python_env))),
            (PYPROJECT, _lines(_of_project(first(PYPROJECT)[1]))),
        ]
    file, text = next(((file, text) for file, text in found if text), (None, None))
    if text is not None and is_mlflow:
        text = without_mlflow(text)
    try:
        requires = _range_of_project(first(PYPROJECT)[1])
    except InspectionError:
        # Beside a requirements.txt it may be about something else.
        if file != REQUIREMENTS:
            raise
        requires = None
    requires = requires or _range_of_conda(*conda)
    return Requested(text=text, file=file, python=python, requires_python=requires)


def without_mlflow(requirements: str) -> str:
    """Take MLflow itself out of requirements: its models are read here without it."""
    own = re.compile(r"\s*(?:mlflow(?:-skinny|-tracing)?|cloudpickle)\s*(?:[=<>!~;\[#].*)?")
    return _lines(line for line in requirements.splitlines() if not own.fullmatch(line))


def _names_packages(requirements: str) -> bool:
    """Tell whether a requirements file has anything but comments in it."""
    lines = (line.strip() for line in requirements.splitlines())
    return any(line and not line.startswith("#") for line in lines)


def _lines(requirements: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in requirements)


def _entries(name: str, text: str) -> list[Any]:
    """Return the list ``dependencies`` of a description in YAML."""
    said = read_yaml(text, name).get("dependencies") if text else None
    return said if isinstance(said, list) else []


def _python_of_venv(text: str) -> str | None:
    said = read_yaml(text, PYTHON_ENV).get("python") if text else None
    return said if isinstance(said, str) and _VERSION.fullmatch(said) else None


def _of_venv(text: str) -> list[str]:
    # It names the file with the requirements, too, which was looked for before.
    texts = (each for each in _entries(PYTHON_ENV, text) if isinstance(each, str))
    return [each for each in texts if not each.lstrip().startswith("-r")]


def _python_of_conda(name: str, text: str) -> str | None:
    for each in _entries(name, text):
        match = _CONDA_PYTHON.fullmatch(each.strip()) if isinstance(each, str) else None
        if match is not None:
            return match[1]
    return None


def _range_of_conda(name: str, text: str) -> str | None:
    for each in _entries(name, text):
        match = _MATCH.fullmatch(each.strip()) if isinstance(each, str) else None
        if match is not None and match["name"] == "python" and match["version"]:
            return match["version"] if _is_range(match["version"]) else None
    return None


def _is_range(text: str) -> bool:
    parts = text.strip().removesuffix(",").split(",")
    is_short = len(text) < _RANGE_CHARS
    return is_short and all(_PART_OF_RANGE.fullmatch(each.strip()) for each in parts)


def _of_conda(name: str, text: str) -> list[str]:
    """Return the requirements of pip in a conda.yaml, and of conda those that run models."""
    entries = _entries(name, text)
    pip = [
        line
        for each in entries
        if isinstance(each, dict) and isinstance(each.get("pip"), list)
        for line in each["pip"]
        if isinstance(line, str)
    ]
    # pip comes last in conda, too, so what it asks for stands.
    settled = {_package(line) for line in pip}
    of_conda = [_as_requirement(each) for each in entries if isinstance(each, str)]
    return [*(each for each in of_conda if each and _package(each) not in settled), *pip]


def _package(requirement: str) -> str:
    name = re.match(r"\s*([A-Za-z0-9._-]*)", requirement)
    return "" if name is None else re.sub(r"[-_.]+", "-", name[1]).lower()


def _as_requirement(entry: str) -> str | None:
    """Return what an entry of conda's means to pip; None for what runs no model.

    One equals sign is a prefix to conda: ``numpy=1.26`` is any 1.26. With all its three numbers a
    release is taken as exact, and so is one with the name of its build.
    """
    match = _MATCH.fullmatch(entry.strip())
    package = None if match is None else _OF_CONDA.get(match["name"].lower())
    if match is None or package is None:
        return None
    version = (match["version"] or "").strip()
    one = _ONE_VERSION.fullmatch(version)
    if one is not None:
        is_whole = one["mark"] == "==" or one["version"].count(".") + 1 >= _NUMBERS_OF_A_RELEASE
        is_prefix = one["any"] or not is_whole
        return f"{package}=={one['version']}{'.*' if is_prefix else ''}"
    return f"{package}{version}" if _RANGE.fullmatch(version) else package


def _table(text: str, *names: str) -> dict[str, Any]:
    """Return a table of a pyproject.toml, empty if it is not there."""
    try:
        found: Any = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _damaged_project(str(error)) from None
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _damaged_project(evidence: str) -> InspectionError:
    return InspectionError("manifest_damaged", name=PYPROJECT, evidence=shown(evidence))


def _of_project(text: str) -> list[str]:
    said = _table(text, "project").get("dependencies")
    if isinstance(said, list):
        return [each for each in said if isinstance(each, str)]
    return poetry.requirements(_table(text, *_OF_POETRY))


def _range_of_project(text: str) -> str | None:
    said = _table(text, "project").get("requires-python")
    if said is None or said == "":
        return poetry.python_range(_table(text, *_OF_POETRY))
    if not isinstance(said, str) or not _is_range(said):
        raise _damaged_project(f"requires-python = {said!r}")
    return said
