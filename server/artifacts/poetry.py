"""Reads what Poetry's table in a pyproject.toml asks for, in the words of Python's own standard.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_NUMBERS = r"\d+(?:\.\d+)*"
_FROM = re.compile(rf"(?P<mark>[\^~])\s*(?P<version>{_NUMBERS})")
_EXACT = re.compile(rf"={{0,2}}\s*(?P<version>{_NUMBERS}(?:\.\*)?)")
_RANGE = re.compile(rf"(?:[<>]=?|!=|~=(?=\s*\d+\.))\s*{_NUMBERS}")
_PLACES = ("git", "url", "path", "file")


def requirements(table: Mapping[str, Any]) -> list[str]:
    """Return the requirements of ``[tool.poetry.dependencies]``, without optional ones."""
    found = (_requirement(name, said) for name, said in table.items() if name != "python")
    return [each for each in found if each is not None]


def python_range(table: Mapping[str, Any]) -> str | None:
    """Return the range of Pythons that it asks for; None where it says nothing that can be told."""
    said = table.get("python")
    return (_range(said) or None) if isinstance(said, str) else None


def _requirement(name: str, said: Any) -> str | None:
    if not isinstance(said, dict):
        return name + _range(said)
    if said.get("optional") is True:
        return None
    place = next((said[key] for key in _PLACES if key in said), None)
    if place is not None:
        # It is refused, as everything is that does not come from the index.
        return f"{name} @ {place}"
    extras = said.get("extras")
    wanted = f"[{','.join(map(str, extras))}]" if isinstance(extras, list) and extras else ""
    markers = said.get("markers")
    condition = f"; {markers}" if isinstance(markers, str) else ""
    return f"{name}{wanted}{_range(said.get('version'))}{condition}"


def _range(said: Any) -> str:
    """Return a constraint as the standard writes it; nothing for any version and for alternatives."""
    parts = [_part(part.strip()) for part in said.split(",")] if isinstance(said, str) else [None]
    return "" if None in parts else ",".join(filter(None, parts))


def _part(said: str) -> str | None:
    if said in {"*", ""}:
        return ""
    found = _FROM.fullmatch(said)
    if found is not None:
        numbers = [int(number) for number in found["version"].split(".")]
        return f">={found['version']},<{_next(numbers, is_caret=found['mark'] == '^')}"
    exact = _EXACT.fullmatch(said)
    if exact is not None:
        return f"=={exact['version']}"
    return said if _RANGE.fullmatch(said) else None


def _next(numbers: list[int], *, is_caret: bool) -> str:
    """Return the first version that ``^`` (no other significant number) or ``~`` (no other minor) leaves out."""
    last = min(1, len(numbers) - 1)
    if is_caret:
        last = next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)
    return ".".join(map(str, [*numbers[:last], numbers[last] + 1]))
