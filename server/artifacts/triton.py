"""Reads the description of an entry of a Triton model repository: which runtime it is for.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.manifests import Described

if TYPE_CHECKING:
    from collections.abc import Iterable

CONFIG = "config.pbtxt"

_KINDS = {
    "onnxruntime_onnx": "onnx",
    "onnxruntime": "onnx",
    "pytorch_libtorch": "torchscript",
    "pytorch": "torchscript",
}
_TOKEN = re.compile(
    r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[{}\[\]<>:,;]|[^\s{}\[\]<>:,;#"']+"""
)
_OPENING, _CLOSING = frozenset("{[<"), frozenset("}]>")


def described(name: str, text: str, members: Iterable[str]) -> Described:
    """Return what the ``config.pbtxt`` of that name says: its one version, and its kind.

    Raises:
        InspectionError: ``manifest_damaged``, ``triton_backend_unsupported``,
            ``manifest_file_missing``, ``archive_several_models``.
    """
    said = _settings(text, name)
    found = [said[key] for key in ("platform", "backend") if said.get(key)]
    unknown = [each for each in found if each not in _KINDS]
    if unknown:
        raise InspectionError("triton_backend_unsupported", found=shown(unknown[0]))
    folder = name.rpartition("/")[0]
    pattern = re.compile(re.escape(f"{folder}/" if folder else "") + r"([0-9]{1,9})/.")
    matches = filter(None, map(pattern.match, members))
    versions = sorted({match[0][:-2] for match in matches})
    if len(versions) > 1:
        raise InspectionError("archive_several_models", models=list(map(shown, versions[:60])))
    if not versions:
        raise InspectionError("manifest_file_missing", manifest=CONFIG, name="1/model.onnx")
    kinds = tuple(dict.fromkeys(_KINDS[each] for each in found)) or ("onnx", "torchscript")
    return Described(manifest=CONFIG, data=versions[0], kinds=kinds)


def _settings(text: str, name: str) -> dict[str, str]:
    """Return the texts that the outermost fields of a protobuf in text form have."""
    tokens = [token for token in _TOKEN.findall(text) if not token.startswith("#")]
    said: dict[str, str] = {}
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth < 0:
            break
        if depth == 0 and tokens[index + 1 : index + 2] == [":"]:
            value = tokens[index + 2] if index + 2 < len(tokens) else ""
            if value[:1] in {'"', "'"}:
                said[token] = value[1:-1]
    if depth != 0 or not tokens:
        raise InspectionError("manifest_damaged", name=shown(name), evidence="brackets")
    return said
