"""What a deployment's reconciler does, on a real store and an engine without processes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from server.states import Phase, Wanted
from tests.support.engines import DiesBeforeReady, NeverReady, RefusesTheModel, until
from tests.support.reconciled_world import KEY

if TYPE_CHECKING:
    import pytest

    from tests.support.reconciled_world import World


async def test_a_version_takes_traffic_only_after_it_was_ready(world: World) -> None:
    await world.want(1)
    await world.reach(Phase.SUCCEEDED)
    assert world.engine.journal == ["start 1", "ready 1", "admit 1"]
    assert world.made.serving_version == 1
    assert world.made.port == 20000
    assert world.results == ["succeeded"]


async def test_a_new_version_is_admitted_before_the_old_one_drains(world: World) -> None:
    await world.want(1)
    await world.reach(Phase.SUCCEEDED)
    await world.want(2)
    await until(lambda: "stop 1" in world.engine.journal)
    assert world.engine.journal[3:] == [
        "start 2",
        "ready 2",
        "admit 2",
        "retreat 1",
        "drain 1",
        "stop 1",
    ]
    await until(lambda: world.unused == ["run1"])


async def test_a_version_that_cannot_serve_leaves_the_old_one_in_place(
    world: World,
) -> None:
    await world.want(1)
    await world.reach(Phase.SUCCEEDED)
    world.engine.kinds[2] = RefusesTheModel
    await world.want(2)
    await world.reach(Phase.FAILED)
    assert world.reconciler.seen(world.made).serving == 1
    assert "drain 1" not in world.engine.journal
    assert world.made.message is not None
    assert world.made.message.code == "onnx_invalid"


async def test_stop_during_a_start_loses_no_process(world: World) -> None:
    world.engine.kinds[1] = NeverReady
    await world.want(1)
    await until(lambda: "start 1" in world.engine.journal)
    await world.want(1, Wanted.STOPPED)
    await until(lambda: "stop 1" in world.engine.journal)
    await until(lambda: not world.engine.listening)
    assert world.phase is Phase.PENDING


async def test_a_crashed_replica_comes_back(world: World) -> None:
    await world.want(1)
    await world.reach(Phase.SUCCEEDED)
    world.engine.replicas[0].crash()
    await until(lambda: world.engine.journal.count("admit 1") == 2)
    await world.reach(Phase.SUCCEEDED)
    assert world.restarts == 1


async def test_a_start_that_is_killed_is_tried_again(world: World) -> None:
    world.engine.kinds[1] = DiesBeforeReady
    await world.want(1)
    await until(lambda: world.engine.journal.count("start 1") == 2)
    world.engine.kinds.clear()
    await world.reach(Phase.SUCCEEDED)


async def test_a_crash_loop_ends_in_failed_with_nobody_home(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.reconcile.backoff.FIRST_SECONDS", 0.01)
    await world.want(1)
    for crash in range(5):
        await until(lambda count=crash: world.engine.journal.count("admit 1") == count + 1)
        await world.reach(Phase.SUCCEEDED)
        world.engine.replicas[-1].crash()
    await world.reach(Phase.FAILED)
    await until(lambda: world.engine.nobody_home[KEY])
    assert world.made.message is not None
    assert world.made.message.code == "crash_loop"


async def test_a_new_version_after_a_crash_loop_serves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.reconcile.backoff.FIRST_SECONDS", 0.01)
    world.engine.kinds[1] = RefusesTheModel
    await world.want(1)
    await world.reach(Phase.FAILED)
    await world.want(2)
    await world.reach(Phase.SUCCEEDED)
    assert not world.engine.nobody_home[KEY]


async def test_a_taken_port_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.reconcile.backoff.FIRST_SECONDS", 0.001)
    world.engine.refuse_port = True
    await world.want(1)
    await world.reach(Phase.FAILED)
    assert world.made.message is not None
    assert world.made.message.code == "port_taken"


async def test_a_deleted_deployment_is_taken_down(world: World) -> None:
    await world.want(1)
    await until(lambda: world.made.serving_version == 1)
    del world.store.deployments[KEY]
    await world.reconciler.gone(KEY)
    assert "stop 1" in world.engine.journal
    assert not world.engine.listening


async def test_after_a_restart_the_version_that_served_is_started_again(
    world: World,
) -> None:
    await world.want(1)
    await world.reach(Phase.SUCCEEDED)
    world.engine.kinds[2] = RefusesTheModel
    await world.want(2)
    await world.reach(Phase.FAILED)
    await world.reconciler.close()
    world.engine.journal.clear()
    world.reconciler = world.fresh_reconciler()
    world.reconciler.open()
    await until(lambda: "admit 1" in world.engine.journal)
    await until(lambda: world.reconciler.seen(world.made).serving == 1)
    assert world.phase is Phase.FAILED


async def test_a_burst_of_new_versions_ends_with_the_last_one(world: World) -> None:
    for version in range(1, 6):
        await world.want(version)
        await asyncio.sleep(0)
    await until(lambda: world.made.serving_version == 5)
    await world.reach(Phase.SUCCEEDED)
    running = [replica for replica in world.engine.replicas if not replica.end.done()]
    await until(lambda: len([r for r in running if not r.end.done()]) == 1)


async def test_a_wanted_half_written_while_a_replica_starts_is_not_lost(
    world: World,
) -> None:
    await world.want(1)
    await world.want(2)
    await until(lambda: world.made.serving_version == 2)


async def test_a_stop_while_nothing_runs_forgets_what_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.reconcile.backoff.FIRST_SECONDS", 60)
    await world.want(1)
    await until(lambda: world.made.serving_version == 1)
    world.engine.replicas[0].crash()
    await until(lambda: world.restarts == 1)
    await world.want(1, Wanted.STOPPED)
    await until(lambda: world.made.serving_run_id is None)
    assert "run1" in world.unused
    assert world.results == ["succeeded", "stopped"]


async def test_a_failed_deployment_is_answered_for_after_a_restart(world: World) -> None:
    world.engine.kinds[1] = RefusesTheModel
    await world.want(1)
    await world.reach(Phase.FAILED)
    await world.reconciler.close()
    world.engine.listening.clear()
    world.engine.nobody_home.clear()
    world.reconciler = world.fresh_reconciler()
    world.reconciler.open()
    await until(lambda: world.engine.nobody_home[KEY])
    assert world.engine.listening == {KEY}


async def test_a_replica_that_hung_comes_back_however_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.reconcile.backoff.FIRST_SECONDS", 0.01)
    await world.want(1)
    for hang in range(7):
        await until(lambda count=hang: world.engine.journal.count("admit 1") == count + 1)
        await world.reach(Phase.SUCCEEDED)
        world.engine.replicas[-1].hang()
    await until(lambda: world.engine.journal.count("admit 1") == 8)


async def test_closing_while_a_replica_starts_leaves_no_task(world: World) -> None:
    world.engine.kinds[1] = NeverReady
    await world.want(1)
    await until(lambda: "start 1" in world.engine.journal)
    before = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    assert before
    await world.reconciler.close()
    assert [task for task in before if not task.done()] == []


async def test_all_replicas_are_ready_before_the_first_takes_traffic(
    world: World,
) -> None:
    await world.want(1, replicas=3)
    await world.reach(Phase.SUCCEEDED)

    journal = world.engine.journal
    assert journal[-3:] == ["admit 1"] * 3
    assert sorted(journal[:-3]) == ["ready 1"] * 3 + ["start 1"] * 3
    assert sorted(replica.spec.ordinal for replica in world.engine.replicas) == [0, 1, 2]


async def test_one_replica_that_cannot_serve_fails_the_version(world: World) -> None:
    world.engine.kinds[1] = RefusesTheModel
    await world.want(1, replicas=2)
    await world.reach(Phase.FAILED)

    assert all(replica.end.done() for replica in world.engine.replicas)


async def test_a_crashed_replica_is_replaced_while_the_others_serve(world: World) -> None:
    await world.want(1, replicas=2)
    await world.reach(Phase.SUCCEEDED)
    first, second = world.engine.replicas
    first.crash()

    await until(lambda: world.reconciler.seen(world.made).is_short)
    assert world.phase is Phase.SUCCEEDED
    assert world.reconciler.replicas(KEY) == [second]

    await until(lambda: len(world.reconciler.replicas(KEY)) == 2)
    assert not second.end.done()
    assert [replica.spec.ordinal for replica in world.reconciler.replicas(KEY)] == [
        first.spec.ordinal,
        second.spec.ordinal,
    ]
    assert world.made.message is None


async def test_replicas_that_crash_together_come_back_together(world: World) -> None:
    await world.want(1, replicas=2)
    await world.reach(Phase.SUCCEEDED)
    for replica in list(world.engine.replicas):
        replica.crash()

    await until(lambda: len(world.engine.replicas) == 4 and world.phase is Phase.SUCCEEDED)
    assert world.restarts == 2
    assert len(world.reconciler.replicas(KEY)) == 2


async def test_every_replica_of_a_replaced_version_is_drained(world: World) -> None:
    await world.want(1, replicas=2)
    await world.reach(Phase.SUCCEEDED)
    await world.want(2)
    await until(lambda: world.engine.journal.count("stop 1") == 2)

    assert world.engine.journal.count("drain 1") == 2
    assert [replica.spec.version for replica in world.reconciler.replicas(KEY)] == [2]


async def test_a_failed_version_leaves_the_old_one_as_many_replicas_as_it_had(
    world: World,
) -> None:
    await world.want(1)
    await world.reach(Phase.SUCCEEDED)
    world.engine.kinds[2] = RefusesTheModel
    await world.want(2, replicas=3)
    await world.reach(Phase.FAILED)

    assert not world.reconciler.seen(world.made).is_short
    assert len(world.reconciler.replicas(KEY)) == 1


async def test_stopping_while_a_missing_replica_starts_ends_all_of_them(
    world: World,
) -> None:
    await world.want(1, replicas=2)
    await world.reach(Phase.SUCCEEDED)
    world.engine.kinds[1] = NeverReady
    world.engine.replicas[0].crash()
    await until(lambda: len(world.engine.replicas) == 3)
    await world.want(1, Wanted.STOPPED, replicas=2)

    await until(lambda: all(replica.end.done() for replica in world.engine.replicas))
    assert world.reconciler.replicas(KEY) == []
