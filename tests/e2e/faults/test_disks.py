"""A disk that fails or is full at any of the service's own writes."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest

from tests.support.faults.share import FACTOR, SECONDS, SEED, Record, say, share
from tests.support.faults.stage import Stage
from tests.support.faults.trials import count_calls, fail_at_call
from tests.support.faults.ways import CHOSEN
from tests.support.faulty_machine.machine import Calls

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SECONDS)]

FAILURES = (
    ("fails once", Calls.FILES, errno.EIO, False),
    ("is full once", Calls.GROWING, errno.ENOSPC, False),
    ("is full", Calls.GROWING, errno.ENOSPC, True),
)


async def test_what_a_failing_disk_refuses_is_named_and_works_once_it_is_healthy(
    tmp_path: Path, environments: ModelEnvironments
) -> None:
    chance = random.Random(SEED)
    trials = [(way, one) for way in CHOSEN if not way.is_restart for one in FAILURES]
    async with Stage(tmp_path, environments) as stage:
        record = Record(stage)
        stage.judge.may_litter = True
        for way, (name, kinds, code, lasting) in share(trials, 8):
            calls = await count_calls(stage, way, kinds)
            numbers = range(1, calls + 1)
            for nth in numbers if FACTOR == "all" else [chance.choice(numbers)]:
                met = await fail_at_call(stage, way, kinds, code, nth, lasting=lasting)
                record.note(f"{way.name}: the disk {name} at call {nth} of {calls}", met=met)
        stage.judge.may_litter = False
        await stage.service.kill()
        await stage.after_death()
        say(record.sum())
    assert stage.judge.complaints == []
