"""Which releases of onnxruntime can read an ONNX model, from the versions that it is written in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.version import Version

from server.errors import StepFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

READERS = frozenset({"onnxruntime", "onnxruntime-gpu"})

_NAMES = {"onnx-ir": "IR version", "onnx-opset": "opset", "onnx-ml-opset": "ai.onnx.ml opset"}

# Newest IR, opset and opset of ai.onnx.ml that each release opens; found by asking each for ever
# newer models. Releases that are older or newer than these judge for themselves.
_READS: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("1.15", (9, 18, 3)),
    ("1.16", (9, 19, 3)),
    ("1.17", (9, 20, 4)),
    ("1.18", (10, 21, 5)),
    ("1.19", (10, 21, 5)),
    ("1.20", (10, 21, 5)),
    ("1.21", (10, 22, 5)),
    ("1.22", (10, 22, 5)),
    ("1.23", (11, 23, 5)),
    ("1.24", (13, 25, 5)),
    ("1.25", (13, 26, 5)),
    ("1.26", (13, 26, 5)),
    ("1.27", (13, 26, 5)),
    ("1.28", (13, 26, 5)),
    ("1.29", (13, 26, 5)),
    ("1.30", (13, 26, 5)),
    ("1.31", (13, 26, 5)),
    ("1.32", (14, 28, 5)),
)
_PATCHES = range(10)
_FAR_AHEAD = Version("9999")


def fitting_reader(requirement: Requirement, wrote: Mapping[str, str]) -> str:
    """Return what a requirement of onnxruntime lacks, as ``>=1.17``, or nothing.

    ``wrote`` tells ``onnx-ir``, ``onnx-opset`` and ``onnx-ml-opset`` of the model.

    Raises:
        StepFailedError: ``onnx_opset_too_new`` if none of the releases that are asked for can
            read it.
    """
    asked = [row for row in _READS if _admits(requirement.specifier, row[0])]
    able = next((release for release, reads in asked if _beyond(reads, wrote) is None), None)
    if able is not None:
        return "" if able == asked[0][0] else f">={able}"
    if not asked or requirement.specifier.contains(_FAR_AHEAD):
        # There may be a release by now that reads it; if not, loading says so.
        return ""
    release, reads = asked[-1]
    evidence = f"{_beyond(reads, wrote)} of {requirement.name} {release}"
    raise StepFailedError("onnx_opset_too_new", evidence=evidence)


def _admits(specifier: SpecifierSet, release: str) -> bool:
    return any(specifier.contains(f"{release}.{patch}") for patch in _PATCHES)


def _beyond(reads: tuple[int, int, int], wrote: Mapping[str, str]) -> str | None:
    """Say what of a model is newer than what a release reads, as ``opset 29 is beyond 28``."""
    for key, most in zip(_NAMES, reads, strict=True):
        version = wrote.get(key, "")
        if version.isdecimal() and int(version) > most:
            return f"{_NAMES[key]} {version} is beyond the {most}"
    return None
