"""Reads an uploaded requirements file: names, extras, versions and markers, nothing else."""

from __future__ import annotations

import re

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement

from server.errors import StepFailedError

MAX_CHARS = 24 * 1024
MAX_LINES = 500
MAX_LINE_CHARS = 400

_COMMENT = re.compile(r"(?:^|\s)#.*$")
_VERSION_CONTROL = re.compile(r"(?:git|hg|svn|bzr)\+")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:")
_PATH = re.compile(r"[./\\~]|[A-Za-z]:[\\/]|.*\.(?:whl|zip|tar\.gz|tgz)(?:\s|$)", re.IGNORECASE)
_SHOWN_CHARS = 80


def parse_requirements(
    text: str, python: str | None = None, file: str = "requirements.txt"
) -> tuple[Requirement, ...]:
    """Return the requirements that hold for a version of Python, their markers taken off.

    It is the service's own where none is given. ``file`` is where the text comes from.

    Raises:
        StepFailedError: ``requirement_refused`` (with ``file``, ``line``, ``text`` and ``found``) for
            options, addresses, paths, direct references and what cannot be read;
            ``requirements_too_large`` and ``requirements_too_many_lines``.
    """
    if len(text) > MAX_CHARS:
        raise StepFailedError("requirements_too_large", file=file, limit_kb=MAX_CHARS // 1024)
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        raise StepFailedError("requirements_too_many_lines", file=file, limit=MAX_LINES)
    parsed = []
    for number, line in enumerate(lines, 1):
        content = _COMMENT.sub("", line).strip()
        if content:
            requirement = _parse(file, number, content)
            if _applies(requirement, python):
                requirement.marker = None
                parsed.append(requirement)
    return tuple(parsed)


def _parse(file: str, number: int, content: str) -> Requirement:
    found = _forbidden(content)
    if found is None:
        try:
            requirement = Requirement(content)
        except InvalidRequirement:
            found = "syntax"
        else:
            if requirement.url is None:
                return requirement
            found = "direct reference"
    raise StepFailedError(
        "requirement_refused", file=file, line=number, text=content[:_SHOWN_CHARS], found=found
    )


def _forbidden(content: str) -> str | None:
    """Name what a line is, if it is something that never reaches the installer."""
    if len(content) > MAX_LINE_CHARS:
        return "too long"
    if content.startswith("-") or re.search(r"\s--?[a-z]", content):
        return "option"
    if _VERSION_CONTROL.match(content):
        return "version control"
    if _URL.match(content):
        return "address"
    if _PATH.match(content) and "@" not in content:
        return "path"
    return None


def _applies(requirement: Requirement, python: str | None) -> bool:
    if requirement.marker is None:
        return True
    try:
        return requirement.marker.evaluate({"extra": "", **_versions(python)})
    except UndefinedEnvironmentName:
        return False


def _versions(python: str | None) -> dict[str, str]:
    if python is None:
        return {}
    minor = ".".join(python.split(".")[:2])
    return {
        "python_version": minor,
        "python_full_version": python,
        "implementation_version": python,
    }
