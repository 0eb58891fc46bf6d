"""For how many targets there is room, and what becomes of those beyond."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from metrics.targets import Target

log = logging.getLogger(__name__)

Kept = Literal["whole", "brief"]


class Crowd(NamedTuple):
    """How many targets have a history, a brief one, and none."""

    whole: int
    brief: int
    none: int


class Places:
    """Who has a history: ``limit`` targets a whole one, as many again a brief one, the others none.

    One that has a place keeps it while it is scraped; those that ended make room.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._whole: set[Target] = set()
        self._is_told = False
        self.brief: dict[Target, None] = {}
        """Those with a brief history, in the order in which they came."""
        self.ended: dict[Target, None] = {}
        """Those with a whole history that are not scraped any more."""
        self.refused: set[Target] = set()
        """Those that are scraped and have no history."""

    def __len__(self) -> int:
        return len(self._whole) + len(self.brief)

    @property
    def crowd(self) -> Crowd:
        """How many there are of each kind."""
        return Crowd(len(self._whole), len(self.brief), len(self.refused))

    @property
    def are_taken(self) -> bool:
        """Whether a whole history has to go before another one can come."""
        return len(self._whole) >= self._limit

    def give(self, target: Target) -> Kept | None:
        """Give a target that has none a place, the best there is; None if there is not any."""
        self.refused.discard(target)
        if not self.are_taken:
            self._whole.add(target)
            return "whole"
        if not self._is_told:
            self._is_told = True
            log.warning(
                "there are more than %d targets: further ones have a brief history", self._limit
            )
        if len(self.brief) < self._limit:
            self.brief[target] = None
            return "brief"
        self.refused.add(target)
        return None

    def promote(self, target: Target) -> None:
        """Let one with a brief history have a whole one."""
        del self.brief[target]
        self._whole.add(target)

    def scraped(self, target: Target) -> None:
        """Note that one that ended is scraped again."""
        self.ended.pop(target, None)

    def dropped(self, target: Target) -> None:
        """Note that one is not scraped any more."""
        self.refused.discard(target)
        if target in self._whole:
            self.ended[target] = None

    def leave(self, target: Target) -> None:
        """Take the place of one that has no history any more."""
        self._whole.discard(target)
        self.brief.pop(target, None)
        self.ended.pop(target, None)
