"""What files that describe a model say; those in YAML are plain mappings, without references.

Runs in the inspecting child too: the standard library and PyYAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown

MANIFEST_BYTES = 256 * 1024
_MOST_DEPTH = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a manifest says: the model's file (or its folder) in the archive, and what it may be."""

    manifest: str
    data: str
    kinds: tuple[str, ...]
    made_with: dict[str, str] = field(default_factory=dict)

    def holds(self, name: str) -> bool:
        """Tell whether a member of the archive is the file, or in the folder."""
        return name == self.data or name.startswith(f"{self.data}/")


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        InspectionError: ``manifest_damaged``.
    """
    import yaml  # noqa: PLC0415 - few archives need it

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                # A few of them unfold to more than any memory holds.
                raise _damaged(name, "references")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_DEPTH:
                raise _damaged(name, "nested too deeply")
        value = yaml.load(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        said = str(getattr(error, "problem", None) or type(error).__name__)
        mark = getattr(error, "problem_mark", None)
        raise _damaged(name, said if mark is None else f"line {mark.line + 1}: {said}") from None
    if not isinstance(value, dict):
        raise _damaged(name, "no mapping")
    return value


def _damaged(name: str, evidence: str) -> InspectionError:
    return InspectionError("manifest_damaged", name=shown(name), evidence=evidence)
