"""What the embedded monitor knows, as bytes: a restart of the service keeps its history.

A target is a head (where it stands) and the blocks of its tiers. Whoever keeps them asks again
and again what is unsaved: a head every time its target was scraped, a block when it grew. What is
unsaved is only gathered on the monitor's thread; another one makes bytes of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from metrics.exposition import LAYOUT
from metrics.growth import NOTHING, Sum, pack
from metrics.history import Newest
from metrics.targets import Target
from metrics.tiers import Mark, dump

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Mapping

    from metrics.embedded import EmbeddedMonitor
    from metrics.history import History
    from metrics.tiers import Block

LAYOUT_DIGEST = hashlib.sha256("\n".join(LAYOUT).encode()).hexdigest()
"""Vectors have no names: another layout cannot be told from this one by looking at them."""

Place = tuple[int, int]
"""A block of a target: number of its tier, start of the block."""


# So many are gathered before others have their turn: a thousand busy ones take some 10 ms.
_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What is unsaved of one target: nobody changes it any more."""

    target: Target
    newest: Newest
    blocks: Mapping[Place, bytes | Block]
    dropped: frozenset[Place]


@dataclass(slots=True, kw_only=True)
class Changes:
    """Some of what is not saved; the targets in ``gone`` are forgotten first."""

    gone: set[str] = field(default_factory=set)
    targets: list[Changed] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What is to be written of one target, and what to be deleted."""

    target: str
    head: bytes
    blocks: Mapping[Place, bytes]
    dropped: frozenset[Place]


class Recorder:
    """Says what of a monitor is unsaved, and lets one go on from what was saved."""

    def __init__(self, monitor: EmbeddedMonitor) -> None:
        self._monitor = monitor
        # Replicas that nobody asks have the same vectors all the time.
        self._packed: dict[str, tuple[array[float], array[float], str, str]] = {}

    def unsaved(self) -> Iterator[Changes]:
        """Say what changed since the last time, a hundred targets at a time.

        What was said counts as saved. To be asked on the monitor's thread, which may do other
        things between two parts.
        """
        changes = Changes(gone=set(self._monitor.gone))
        self._monitor.gone.clear()
        for target, watched in list(self._monitor.watched()):
            # A brief history is over before it could be gone on from.
            if watched.history.changed and watched.history.tiers:
                changes.targets.append(_changed(target, watched.history))
            if len(changes.targets) == _AT_ONCE:
                yield changes
                changes = Changes()
        if changes.gone or changes.targets:
            yield changes

    def write(self, changes: Changes) -> list[Written]:
        """Make bytes of what changed; on any thread, but on one at a time."""
        for gone in changes.gone:
            self._packed.pop(gone, None)
        return [
            Written(
                target=one.target.id,
                head=self._head(one.target, one.newest),
                blocks={place: dump(block) for place, block in one.blocks.items()},
                dropped=one.dropped,
            )
            for one in changes.targets
        ]

    def not_saved(self, changes: Changes) -> None:
        """Take back that these were saved."""
        self._monitor.gone |= changes.gone
        failed = {changed.target: changed for changed in changes.targets}
        for target, watched in self._monitor.watched():
            changed = failed.get(target)
            if changed is None:
                continue
            history = watched.history
            history.changed = True
            # It may have gone and come back with a brief history meanwhile, which has none.
            for number, tier in enumerate(history.tiers):
                tier.fresh |= {start for at, start in changed.blocks if at == number}
                tier.dropped |= {start for at, start in changed.dropped if at == number}

    def resume(self, head: bytes, blocks: Mapping[Place, bytes]) -> bool:
        """Let the monitor go on from a target that was saved; whether its head could be read.

        Blocks that cannot be read are left out.
        """
        history = self._monitor.new_history()
        try:
            target, newest = _read(head)
        except (ValueError, KeyError, TypeError):
            self._monitor.opened.rot()
            return False
        for number, tier in enumerate(history.tiers):
            mine = {start: data for (of, start), data in blocks.items() if of == number}
            tier.take(mine, self._monitor.opened)
        history.resume(newest)
        now = round(self._monitor.now() * 1000)
        if newest.mark.at > now:
            # The clock was ahead when this was written.
            history.rewind(now, self._monitor.opened)
        self._monitor.resume(target, history)
        return True

    def _head(self, target: Target, newest: Newest) -> bytes:
        known = self._packed.get(target.id)
        if known is None or known[0] is not newest.raw or known[1] is not newest.base:
            raw, base = _text(newest.raw), _text(newest.base)
            known = self._packed[target.id] = (newest.raw, newest.base, raw, base)
        document = {
            **newest._asdict(),
            "target": asdict(target),
            "raw": known[2],
            "base": known[3],
        }
        return json.dumps(document, separators=(",", ":")).encode()


def _changed(target: Target, history: History) -> Changed:
    blocks: dict[Place, bytes | Block] = {}
    dropped: set[Place] = set()
    for number, tier in enumerate(history.tiers):
        blocks |= {(number, start): block for start, block in tier.blocks(tier.fresh).items()}
        dropped |= {(number, start) for start in tier.dropped}
        tier.fresh.clear()
        tier.dropped.clear()
    history.changed = False
    return Changed(
        target=target, newest=history.newest(), blocks=blocks, dropped=frozenset(dropped)
    )


def _read(head: bytes) -> tuple[Target, Newest]:
    document = json.loads(head)
    target = Target(**{key: str(value) for key, value in document.pop("target").items()})
    at, scrapes, samples, load = document.pop("mark")
    raw, base = _vector(document.pop("raw")), _vector(document.pop("base"))
    stretches = tuple((int(first), int(last)) for first, last in document.pop("stretches", ()))
    newest = Newest(
        mark=Mark(int(at), int(scrapes), int(samples), float(load)),
        raw=raw,
        base=base,
        stretches=stretches,
        **document,
    )
    sound = 0 <= newest.mark.samples <= newest.samples <= newest.mark.scrapes + 1
    if not sound or not math.isfinite(newest.load) or newest.sampled_at > newest.mark.at:
        raise ValueError("counts that cannot be")
    return target, newest


def _text(vector: array[float]) -> str:
    return base64.b64encode(pack(NOTHING, vector)).decode()


def _vector(text: str) -> array[float]:
    data = base64.b64decode(text, validate=True)
    if not data:
        # The one vector by which a history knows that no reset took anything away.
        return NOTHING
    grown = Sum()
    grown.add(data)
    return grown.vector()
