"""How much of all trials a test run goes through, and which: the seed chooses."""

from __future__ import annotations

import os
import random
import sys
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.faults.stage import Stage

SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
FACTOR = os.environ.get("TEST_FAULTS", "1")
"""Multiplies the trials; ``all`` takes every one."""
SECONDS = 7200 if FACTOR == "all" else 600 + 300 * int(FACTOR)
"""How long a test of such trials may take."""

T = TypeVar("T")


def share(trials: Sequence[T], number: int) -> list[T]:
    """So many of the trials, times the factor, in the order in which they are given."""
    if FACTOR == "all" or number * int(FACTOR) >= len(trials):
        return list(trials)
    picked = random.Random(SEED).sample(range(len(trials)), number * int(FACTOR))
    return [trials[index] for index in sorted(picked)]


class Record:
    """Shows every trial as it goes, and the sum of them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._shown = 0
        self.trials = 0
        self.met = 0
        say(f"SEED={SEED}")

    def note(self, line: str, *, met: bool) -> None:
        """Show a trial with the complaints that it brought; ``met``: it came to the fault."""
        self.trials += 1
        self.met += met
        say(f"  {line}{'' if met else ' (not reached)'}")
        complaints = self._stage.judge.complaints
        for kind, detail in complaints[self._shown :]:
            say(f"    {kind}: {detail}")
        self._shown = len(complaints)

    def sum(self) -> str:
        """One line for all of them."""
        counts = dict(self._stage.judge.counts()) or "no complaint"
        line = f"{self.met} faults in {self.trials} trials, {self._stage.deaths} kills: {counts}"
        return f"{line}; {self._stage.times.row()}" if self._stage.deaths else line


def say(line: str) -> None:
    """Show something to whoever repeats the run; pytest shows it where a test failed."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
