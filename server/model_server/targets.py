"""What the paths of the Open Inference Protocol mean."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Sequence
from urllib.parse import unquote

import httptools


class Target(NamedTuple):
    """What a path asks for, of which model and version."""

    action: str
    model: str = ""
    version: str = ""


STATISTICS_OF_ALL = Target("model", "stats")
"""``/v2/models/stats`` reads like a model's name, and means this unless a model is called so."""

METHODS = {"infer": ("POST",)}
READING = ("GET", "HEAD")
_PATHS = {
    ("v2",): "server",
    ("v2", "health", "live"): "live",
    ("v2", "health", "ready"): "ready",
}
_MODEL_PATHS = {
    (): "model",
    ("ready",): "model_ready",
    ("infer",): "infer",
    ("stats",): "stats",
}


def target_of(path: str) -> Optional[Target]:
    """Read a request's target, or return None if the protocol has no such path."""
    if not path.startswith("/"):
        path = _of_whole_address(path)
    parts = tuple(path.partition("?")[0].split("/")[1:])
    if parts in _PATHS:
        return Target(_PATHS[parts])
    if parts[:2] != ("v2", "models") or len(parts) < 3 or not parts[2]:
        return None
    rest, version = parts[3:], ""
    if rest[:1] == ("versions",) and len(rest) > 1:
        version, rest = unquote(rest[1]), rest[2:]
    action = _MODEL_PATHS.get(rest)
    return None if action is None else Target(action, unquote(parts[2]), version)


def known_targets(names: Sequence[str], version: str) -> Dict[str, Target]:
    """List the paths of predictions, which need no reading."""
    known = {}
    for name in names:
        for given in ("", version):
            middle = f"/versions/{given}" if given else ""
            known[f"/v2/models/{name}{middle}/infer"] = Target("infer", name, given)
    return known


def _of_whole_address(target: str) -> str:
    """Return the path of ``http://host/path``, which servers must accept (RFC 9112, 3.2.2)."""
    try:
        path = httptools.parse_url(target.encode("latin-1")).path
    except httptools.HttpParserInvalidURLError:
        return ""
    return path.decode("latin-1") if path else ""
