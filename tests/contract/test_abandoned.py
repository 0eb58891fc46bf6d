"""Runs whose owner nobody can act for: they wait long, and go, unless they are deployed."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from server import app as composition
from server.api.callers import reachable
from server.api.sessions import OWNER as OWNER_FIELD
from server.api.sessions import _Known
from server.errors import StorageFullError
from server.pipeline import abandoned as module
from server.pipeline.abandoned import LOOK_SECONDS, Abandoned
from server.pipeline.housekeeping import Housekeeping
from server.records import Preparation
from server.states import Phase, Scope, Wanted
from server.store.abandoned import AbandonedOwners
from server.store.sessions import Sessions
from tests.support import onnx_files
from tests.support.engines import until
from tests.support.in_process import serving
from tests.support.records import a_deployment
from tests.support.tokens import OWNER, RUN, Desk, a_run, desk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.records import Run

DAY = 24 * 3600.0
KEEP = 90 * DAY


class World:
    """One owner with one run; hours pass when we say so."""

    def __init__(self, at: Desk) -> None:
        self.desk = at
        self.store = at.store
        self.sessions = Sessions(at.database)
        self.deleted: list[str] = []
        self.fails = False
        self.seconds = 0.0
        self.restart()

    def restart(self, keep_seconds: float = KEEP) -> None:
        """Begin another life of the service on the same database."""
        self.abandoned = Abandoned(
            self.store,
            AbandonedOwners(self.desk.database),
            partial(reachable, self.sessions, self.desk.tokens),
            self._delete,
            keep_seconds=keep_seconds,
            clock=lambda: self.seconds,
        )

    async def _delete(self, run: Run) -> None:
        if self.fails:
            raise StorageFullError("disk_full")
        self.deleted.append(run.run_id)
        await self.store.delete_run(run.run_id)

    async def pass_(self, days: float) -> None:
        """Let time pass, and the service look in its course."""
        self.seconds += LOOK_SECONDS
        await self.abandoned.attend()
        self.seconds += days * DAY
        await self.abandoned.attend()

    async def have_session(self, until: float) -> None:
        row = _Known({OWNER_FIELD: OWNER}, 0.0, 0.0).dump()
        await self.sessions.save("k", row, until)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with desk(tmp_path) as opened:
        yield World(opened)


async def test_a_run_that_nobody_can_reach_goes_after_the_time_and_not_before(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await world.pass_(89.9)
        assert world.deleted == []
        assert caplog.messages == [
            f"nobody can reach the runs {RUN} any more: their session has ended and there is no "
            "token; those that are not deployed are deleted in 90.0 days"
        ]
        await world.pass_(0.2)
    assert world.deleted == [RUN]
    assert f"the run {RUN} of 2027-01-01 was deleted" in caplog.messages[-1]
    await world.pass_(1)
    assert await AbandonedOwners(world.desk.database).load() == {}


async def test_it_is_looked_at_once_an_hour(world: World) -> None:
    world.seconds = LOOK_SECONDS - 1
    await world.abandoned.attend()
    assert await AbandonedOwners(world.desk.database).load() == {}


async def test_whoever_has_a_session_loses_nothing(world: World) -> None:
    await world.have_session(9e12)
    await world.pass_(1000)
    assert world.deleted == []


@pytest.mark.parametrize("scope", Scope)
async def test_whoever_has_a_token_of_any_scope_loses_nothing(world: World, scope: Scope) -> None:
    await world.desk.make(scope)
    await world.pass_(1000)
    assert world.deleted == []


@pytest.mark.parametrize("ending", ["revoked", "expired"])
async def test_a_token_that_ends_begins_the_time(world: World, ending: str) -> None:
    token, _ = await world.desk.make(lifetime=timedelta(days=1))
    await world.pass_(1000)
    if ending == "revoked":
        await world.desk.tokens.revoke(token.token_id)
    else:
        world.desk.clock.pass_(days=2)
    await world.pass_(89)
    assert world.deleted == []
    await world.pass_(1)
    assert world.deleted == [RUN]


async def test_the_operators_token_ends_the_time(world: World) -> None:
    await world.pass_(89)
    token, _ = await world.desk.make()
    await world.pass_(2)
    await world.desk.tokens.revoke(token.token_id)
    await world.pass_(89)
    assert world.deleted == []


async def test_the_time_goes_on_after_a_restart_and_is_not_counted_while_nothing_runs(
    world: World,
) -> None:
    await world.pass_(50)
    world.seconds += 1000 * DAY
    world.restart()
    await world.pass_(39)
    assert world.deleted == []
    await world.pass_(1)
    assert world.deleted == [RUN]


async def test_zero_keeps_everything(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.restart(keep_seconds=0)
    await world.pass_(10_000)
    assert world.deleted == []
    assert caplog.records == []


async def test_what_is_deployed_or_under_way_stays(world: World) -> None:
    second, third, fourth = (a_run(str(number) * 32, model=str(number)) for number in range(3))
    for run in (second, third, fourth):
        await world.store.add_run(run)
    made = a_deployment(world.store.runs[RUN])
    await world.store.want(made)
    # A newer version failed, and the one before it serves.
    await world.store.want(replace(a_deployment(second), version=2))
    await world.store.saw(
        replace(
            world.store.deployments[a_deployment(second).key],
            serving_version=1,
            serving_run_id=third.run_id,
        )
    )
    await world.store.save_preparation(Preparation(run_id=fourth.run_id, phase=Phase.RUNNING))

    await world.pass_(100)
    assert world.deleted == []

    await world.store.want(replace(made, wanted=Wanted.STOPPED, version=1))
    await world.pass_(1)
    assert world.deleted == [RUN]


async def test_others_keep_theirs(world: World) -> None:
    await world.store.add_run(a_run("f" * 32, "somebody else"))
    await world.desk.make(owner="somebody else")
    await world.pass_(100)
    assert world.deleted == [RUN]


async def test_one_that_cannot_be_deleted_now_is_tried_again(world: World) -> None:
    world.fails = True
    await world.pass_(91)
    world.fails = False
    await world.pass_(0.1)
    assert world.deleted == [RUN]


async def test_a_service_deletes_what_an_ended_session_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(composition, "Housekeeping", lambda duties, *_: Housekeeping(duties, 0.05))
    async with serving(tmp_path, keep_abandoned_seconds=0.2) as here:
        run_id = await here.caller.upload(onnx_files.linear())
        store, sessions = here.app[composition.keys.STORE], here.app[composition._SESSIONS]
        owner = store.runs[run_id].owner
        assert await reachable(sessions, here.app[composition.keys.TOKENS]) == {owner}

        await sessions.forget_expired(9e12)
        await until(lambda: run_id not in store.runs)
        await until(
            lambda: not [each for each in (tmp_path / "blobs").rglob("*") if each.is_file()]
        )
