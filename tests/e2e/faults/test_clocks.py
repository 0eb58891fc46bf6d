"""A wall clock that is put forward and back by hours."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support.faults.stage import BIG, SMALL, Stage
from tests.support.predictions import addresses
from tests.support.shapes import assert_summary, assert_time

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = pytest.mark.e2e

HOUR = 3600.0


@pytest.mark.parametrize("jumps", [(3, -6), (-6, 3), (20, -20)], ids=str)
async def test_a_clock_that_jumps_ends_no_session_lease_or_deadline_and_no_time_goes_back(
    jumps: tuple[int, ...], tmp_path: Path, environments: ModelEnvironments
) -> None:
    settings = {"PERSEPHONE_LEASE_SECONDS": "3600"}
    async with Stage(tmp_path, environments, settings) as stage:
        waiting = await stage.prepared(SMALL.uuid)
        served = await stage.deployed(BIG.uuid)
        for hours in jumps:
            under_way = await stage.uploaded()
            await stage.client.start_preparing(under_way)
            stage.machine.put_clock(hours * HOUR)

            assert (await stage.client.until_prepared(under_way))["phase"] == "Succeeded"
            # One that serves, one that is new, and one that is taken up again.
            await stage.client.deploy(served)
            await stage.client.deploy(under_way)
            await stage.judge.judge()
            status = stage.client.runs[served].rollouts["dev"].told
            for base in addresses(status):
                await stage.client.caller.get(f"{base}/v2/models/{served}")
            assert_summary(
                await stage.client.caller.get(f"/monitor/summary?runId={served}"), served
            )
            run = (await stage.client.caller.get("/runs"))["runs"][0]
            assert run["runId"] == under_way
            made = assert_time(run["createdAt"])
            off = timedelta(seconds=stage.machine.clock_offset) - timedelta(hours=hours)
            assert abs(made - datetime.now(UTC) - off) < timedelta(minutes=10)
        await stage.service.kill()
        await stage.after_death()
        # The figures go on: the summary has a reading of the minute that it is asked in.
        async with asyncio.timeout(60):
            path = f"/monitor/summary?runId={served}"
            while (await stage.client.caller.get(path))["dataStatus"] not in {"ok", "no_traffic"}:
                await asyncio.sleep(0.2)
        assert waiting in stage.client.runs
    assert stage.judge.complaints == []
