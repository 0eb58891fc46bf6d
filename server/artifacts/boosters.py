"""Checks the files of XGBoost and LightGBM: whole, and which release wrote them.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from server.artifacts.failures import InspectionError

if TYPE_CHECKING:
    from pathlib import Path

_XGBOOST_START = re.compile(rb'\s{0,16}\{\s{0,16}(?:"learner"\s{0,16}:|L\x00{7}\x07learner)')
# Both forms end in the release that wrote them; JSON may be indented.
_XGBOOST_END = re.compile(
    rb'(?:"version"\s*:\s*\[\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\]\s*\}\s*'
    rb"|L\x00{7}\x07version\[#L\x00{7}\x03i(.)i(.)i(.)\})\Z",
    re.DOTALL,
)
_LIGHTGBM_END = re.compile(rb"\nend of trees\s*\n")
_END_BYTES = 1024 * 1024


def looks_like_xgboost(head: bytes) -> bool:
    """Tell whether this begins a model in XGBoost's JSON or UBJSON."""
    return _XGBOOST_START.match(head) is not None


def looks_like_lightgbm(head: bytes) -> bool:
    """Tell whether this begins a model in LightGBM's text."""
    return head.startswith(b"tree\nversion=v")


def check_booster(path: Path, kind: str) -> dict[str, str]:
    """Return which release wrote a model of ``xgboost`` or ``lightgbm``, as far as it says so.

    Raises:
        InspectionError: ``booster_damaged``.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _END_BYTES, 0))
        end = file.read()
    if kind == "lightgbm":
        if _LIGHTGBM_END.search(end) is None:
            raise InspectionError("booster_damaged", library="LightGBM")
        return {}
    match = _XGBOOST_END.search(end[-256:])
    if match is None:
        raise InspectionError("booster_damaged", library="XGBoost")
    parts = [int(part) for part in match.groups()[:3] if part is not None]
    parts = parts or [part[0] for part in match.groups()[3:]]
    return {"xgboost": ".".join(map(str, parts))}
