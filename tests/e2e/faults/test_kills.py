"""SIGKILL at named points and between any two changes of files: what was told to a client holds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from server.faults import Point
from tests.support.faults.share import FACTOR, SECONDS, SEED, Record, say, share
from tests.support.faults.stage import Stage
from tests.support.faults.trials import count_calls, kill_at_call, kill_at_point
from tests.support.faults.ways import CHOSEN, DATABASE, WAYS
from tests.support.faulty_machine.machine import Calls

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SECONDS)]


def test_every_point_lies_on_a_way() -> None:
    assert {point for way in WAYS for point, _ in way.trials()} == set(Point)


async def test_killed_at_a_named_point_the_service_loses_nothing_that_was_told(
    tmp_path: Path, environments: ModelEnvironments
) -> None:
    trials = [(way, point, nth) for way in CHOSEN for point, nth in way.trials()]
    missed = []
    async with Stage(tmp_path, environments) as stage:
        record = Record(stage)
        for way, point, nth in share(trials, 12):
            met = await kill_at_point(stage, way, point, nth)
            record.note(f"{way.name}: {point} {nth}", met=met)
            if not met and point not in DATABASE:
                missed.append((way.name, point))
        say(record.sum())
    assert stage.judge.complaints == []
    assert missed == []


async def test_killed_at_any_change_of_a_file_the_service_loses_nothing_that_was_told(
    tmp_path: Path, environments: ModelEnvironments
) -> None:
    chance = random.Random(SEED)
    async with Stage(tmp_path, environments) as stage:
        record = Record(stage)
        for way in share(CHOSEN, 3):
            calls = await count_calls(stage, way, Calls.FILES)
            numbers = range(1, calls + 1)
            for nth in numbers if FACTOR == "all" else [chance.choice(numbers)]:
                torn = chance.random() < 0.5
                met = await kill_at_call(stage, way, Calls.FILES, nth, torn=torn)
                record.note(f"{way.name}: call {nth} of {calls}{' (torn)' * torn}", met=met)
        say(record.sum())
    assert stage.judge.complaints == []
