"""Reads the text that a replica exposes, which nobody has reason to trust.

A text is taken whole or not at all: each series of the fixed layout once, each value a finite
count. What is left over is dropped, so that a replica cannot add series to any monitor.
"""

from __future__ import annotations

import math
import re
from array import array
from typing import TYPE_CHECKING, NamedTuple

from metrics import names
from metrics.instruments import escape, head

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_BYTES = 256 * 1024
"""Largest text that is read; a replica's own is some 14 KiB."""

MAX_LINES = 2048

PROBE_SERIES = tuple(f'{names.PROBES}{{result="{result}"}}' for result in names.PROBE_RESULTS)
COUNTER_SERIES = (
    *(f'{names.REQUESTS}{{code="{code}"}}' for code in names.CODE_CLASSES),
    names.OVERLOADED,
    *PROBE_SERIES,
)
BUCKET_SERIES = tuple(
    f'{names.DURATION}_bucket{{le="{names.bound_text(bound)}"}}'
    for bound in (*names.LATENCY_BOUNDS, math.inf)
)
LAYOUT = (*COUNTER_SERIES, *BUCKET_SERIES)
"""Series of a vector of samples, in order: requests by class, those that were overloaded,
probes, then cumulated buckets."""

OVERLOADED_AT = len(names.CODE_CLASSES)
"""Place of the overloaded requests in a vector of samples."""

PROBES_FROM = OVERLOADED_AT + 1
"""Place of the first of the probes in a vector of samples."""

BUCKETS_FROM = len(COUNTER_SERIES)
"""Place of the first bucket in a vector of samples."""

GAUGES = (f"{names.DURATION}_sum", names.IN_PROGRESS, names.START_TIME)

# The gauge that monitors keep is read like one more series.
_READ = (*LAYOUT, names.IN_PROGRESS)
_SLOTS = {series: slot for slot, series in enumerate(_READ)}
# Only the service itself counts probes, in a deployment's name.
_OPTIONAL = frozenset(range(PROBES_FROM, BUCKETS_FROM))
_REQUIRED = frozenset(range(len(_READ))) - _OPTIONAL
# A replica could think of ever new layouts; honest ones have two.
_MAX_LAYOUTS = 8
# Slots of lines that hold no sample of ours, and of lines that hold none at all.
_IGNORED, _COMMENT = -1, -2
# Counts above this are no longer exact in a double; no replica counts that far.
_MAX_COUNT = 2.0**53
_LINE = re.compile(
    r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{([^{}]{0,400})\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?\s*"
)
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._+:-]")


class ExpositionError(ValueError):
    """A replica's text is too large, incomplete, or holds a value that is no count."""


Layouts = dict[int, list[tuple[str, int, int]]]
"""Where series stand in texts of so many lines: how each line starts, how long that start is,
and the slot of its value. Shared by readers, since replicas' texts are alike."""


class Scrape(NamedTuple):
    """What monitors keep of one text; ``counters`` may be shared, so leave them alone."""

    counters: array[float]
    in_progress: float


class ExpositionReader:
    """Reads the same target's text again and again.

    It remembers where each series stood: the next text usually has the same lines with other
    values, and then only the values are read. ``probes`` says that the text may count probes;
    where only the service does, a replica's own word for them is not taken.
    """

    __slots__ = ("_layouts", "_probes", "_scrape", "_seen")

    def __init__(self, layouts: Layouts | None = None, *, probes: bool = False) -> None:
        self._layouts: Layouts = {} if layouts is None else layouts
        self._probes = probes
        self._seen: tuple[int, int] | None = None
        self._scrape = Scrape(array("d"), 0.0)

    def read(self, text: str) -> Scrape:
        """Read the samples in the order of ``LAYOUT``.

        Raises:
            ExpositionError: the text cannot be taken as a whole.
        """
        seen = (len(text), hash(text))
        if seen == self._seen:
            return self._scrape
        _check_size(text)
        scrape = self._read_by_place(text)
        if scrape is None:
            scrape, layout = _read_fully(text)
            if layout:
                self._remember(layout)
        if not self._probes:
            for slot in _OPTIONAL:
                scrape.counters[slot] = 0.0
        self._seen, self._scrape = seen, scrape
        return scrape

    def _remember(self, layout: list[tuple[str, int, int]]) -> None:
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        self._layouts[len(layout)] = layout

    def _read_by_place(self, text: str) -> Scrape | None:
        lines = text.split("\n")
        layout = self._layouts.get(len(lines))
        if layout is None:
            return None
        vector = array("d", bytes(8 * len(_READ)))
        try:
            for line, (start, length, slot) in zip(lines, layout, strict=True):
                if not line.startswith(start) or (slot == _COMMENT and line != start):
                    return None
                if slot >= 0:
                    vector[slot] = float(line[length:])
        except ValueError:
            return None
        # What is no count is named by the full reading; NaN shows in the sum only.
        sound = min(vector) >= 0 and max(vector) <= _MAX_COUNT and not math.isnan(sum(vector))
        return Scrape(vector, vector.pop()) if sound else None


def parse(text: str) -> tuple[array[float], dict[str, float], dict[str, str]]:
    """Read the samples in the order of ``LAYOUT``, the gauges by name, the model's labels.

    Raises:
        ExpositionError: the text cannot be taken as a whole.
    """
    found: dict[str, float] = {}
    info: dict[str, str] = {}
    for name, labels, value in _samples(text):
        if name == names.MODEL_INFO:
            info = info or {key: plain(labels.get(key, "")) for key in names.INFO_LABELS}
            continue
        found.setdefault(_series(name, labels), value)
    gauges = {name: found[name] for name in GAUGES if math.isfinite(found.get(name, math.nan))}
    return _vector(found), gauges, info


def render(vector: array[float], gauges: Mapping[str, float], info: Mapping[str, str]) -> str:
    """Write a replica's text in the format 0.0.4, of what ``parse`` found, in our own words."""
    lines = [*head(names.REQUESTS, "counter")]
    lines.extend(
        f"{series} {value!r}"
        for series, value in zip(COUNTER_SERIES[:OVERLOADED_AT], vector, strict=False)
    )
    lines.extend(head(names.OVERLOADED, "counter"))
    lines.append(f"{names.OVERLOADED} {vector[OVERLOADED_AT]!r}")
    lines.extend(head(names.DURATION, "histogram"))
    lines.extend(
        f"{series} {value!r}"
        for series, value in zip(BUCKET_SERIES, vector[BUCKETS_FROM:], strict=True)
    )
    lines.append(f"{names.DURATION}_count {vector[-1]!r}")
    for name, value in gauges.items():
        if name != f"{names.DURATION}_sum":
            lines.extend(head(name, "gauge"))
        lines.append(f"{name} {value!r}")
    if info:
        labels = ",".join(f'{key}="{escape(value)}"' for key, value in info.items())
        lines.extend((*head(names.MODEL_INFO, "gauge"), f"{names.MODEL_INFO}{{{labels}}} 1.0"))
    return "\n".join(lines) + "\n"


def plain(value: str) -> str:
    """Reduce a label's value to 80 letters, digits and ``._+:-`` at most."""
    return _NOT_PLAIN.sub("_", value[:80])


def _read_fully(text: str) -> tuple[Scrape, list[tuple[str, int, int]]]:
    vector, gauges, _ = parse(text)
    scrape = Scrape(vector, gauges[names.IN_PROGRESS])
    heads: list[tuple[str, int, int]] = []
    taken: set[int] = set()
    for line in text.split("\n"):
        if not line or line.startswith("#"):
            heads.append((line, len(line), _COMMENT))
            continue
        series = line.rsplit(" ", 1)[0]
        if series.startswith(names.MODEL_INFO + "{"):
            # Its labels differ from model to model, and nothing is read from it.
            heads.append((names.MODEL_INFO, len(names.MODEL_INFO), _IGNORED))
            continue
        slot = _SLOTS.get(series, _IGNORED)
        if slot in taken:
            return scrape, []
        if slot >= 0:
            taken.add(slot)
        heads.append((f"{series} ", len(series) + 1, slot))
    # Only a text that spells every series as we do can be read by place.
    return scrape, heads if taken >= _REQUIRED else []


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    _check_size(text)
    for line in text.split("\n"):
        if not line.startswith("inference_") and not line.startswith(names.START_TIME):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        yield match[1], _labels(match[2] or ""), value


def _labels(text: str) -> dict[str, str]:
    """Read labels up to the first thing that is none; to search for more of them takes too long."""
    labels, at = {}, 0
    while match := _LABEL.match(text, at):
        labels[match[1]] = match[2]
        at = match.end()
    return labels


def _check_size(text: str) -> None:
    if len(text) > MAX_BYTES or len(text.encode(errors="replace")) > MAX_BYTES:
        raise ExpositionError(f"the text is larger than {MAX_BYTES} bytes")
    if text.count("\n") > MAX_LINES:
        raise ExpositionError(f"the text has more than {MAX_LINES} lines")


def _series(name: str, labels: Mapping[str, str]) -> str:
    if not labels:
        return name
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inside}}}"


def _vector(found: Mapping[str, float]) -> array[float]:
    vector = array("d", bytes(8 * len(LAYOUT)))
    for slot, series in enumerate(_READ):
        value = found.get(series, 0.0 if slot in _OPTIONAL else None)
        if value is None:
            raise ExpositionError(f"{series} is missing")
        if not 0 <= value <= _MAX_COUNT:
            raise ExpositionError(f"{series} has a value that is no count")
        if slot < len(LAYOUT):
            vector[slot] = value
    return vector
