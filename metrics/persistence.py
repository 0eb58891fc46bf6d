"""What the embedded monitor knows, as bytes: a restart of the service keeps the service levels.

Only each target's first and last sample are kept, which is all that a window since the first
deployment needs; a window that begins in between begins with the restart.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from metrics.embedded import Life
from metrics.exposition import LAYOUT
from metrics.semantics import Span
from metrics.targets import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metrics.embedded import EmbeddedMonitor

# Vectors have no names: another layout cannot be told from this one by looking at them.
_LAYOUT = hashlib.sha256("\n".join(LAYOUT).encode()).hexdigest()


def dump(monitor: EmbeddedMonitor) -> bytes:
    """Write down every target's life; some 6 KB each."""
    lives = [_document(life) for life in monitor.lives()]
    return json.dumps({"layout": _LAYOUT, "lives": lives}, separators=(",", ":")).encode()


def load(monitor: EmbeddedMonitor, data: bytes) -> int:
    """Let the monitor go on from what was written down; how many targets it was.

    Of another layout, or damaged, it is not used: history is lost then, nothing else.
    """
    try:
        document = json.loads(data)
        if document["layout"] != _LAYOUT:
            return 0
        lives = [_life(entry) for entry in document["lives"]]
    except (ValueError, KeyError, TypeError):
        return 0
    for life in lives:
        monitor.resume(life)
    return len(lives)


def _document(life: Life) -> dict[str, Any]:
    document: dict[str, Any] = {
        "target": asdict(life.target),
        "probes": life.probes,
        "last_at": life.last_at,
    }
    if life.samples is not None:
        span, last = life.samples
        document["samples"] = {
            "first_at": span.first_at,
            "last_at": span.last_at,
            "count": span.count,
            "first": _short(span.first),
            "grown": _short(span.grown),
            "last": _short(last),
        }
    return document


def _life(entry: dict[str, Any]) -> Life:
    first, ups, scrapes = map(int, entry["probes"])
    last_at = int(entry["last_at"])
    if not 0 <= ups <= scrapes or not 0 <= first <= last_at:
        raise ValueError("counts that cannot be")
    found, samples = entry.get("samples"), None
    if found is not None:
        span = Span(
            first_at=int(found["first_at"]),
            last_at=int(found["last_at"]),
            count=int(found["count"]),
            first=_vector(found["first"]),
            grown=_vector(found["grown"]),
        )
        samples = (span, _vector(found["last"]))
    target = Target(**{key: str(value) for key, value in entry["target"].items()})
    return Life(target=target, samples=samples, probes=(first, ups, scrapes), last_at=last_at)


def _short(vector: Sequence[float]) -> list[int | float]:
    return [int(value) if value.is_integer() else value for value in vector]


def _vector(values: list[float]) -> array[float]:
    vector = array("d", values)
    if len(vector) != len(LAYOUT) or not all(map(math.isfinite, vector)):
        raise ValueError("another layout")
    return vector
