"""What is done to a service when it is to fail: a setting made ready, and an act of its client."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.faults import Point
from tests.support.faults.stage import BIG, SMALL
from tests.support.onnx_files import unary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.support.faults.stage import Act, Stage

DATABASE = (Point.DATABASE_BEGUN, Point.DATABASE_WRITTEN, Point.DATABASE_COMMITTED)
_names = itertools.count(1)


@dataclass(frozen=True)
class Way:
    """One act, the points on its way, and how many transactions it takes at most.

    ``ready`` prepares it and returns the act, which may be done again after a failure.
    ``is_restart``: the act starts or ends the service. ``after``: seconds in which something goes on
    after the act that belongs to it.
    """

    name: str
    ready: Callable[[Stage], Awaitable[Act]]
    points: tuple[Point, ...]
    transactions: int = 0
    is_restart: bool = False
    after: float = 0.5

    def trials(self) -> Iterator[tuple[Point, int]]:
        """Every point, and the number of the time that it is reached."""
        yield from ((point, 1) for point in self.points)
        for nth in range(1, self.transactions + 1):
            yield from ((point, nth) for point in DATABASE)


async def _upload(stage: Stage) -> Act:
    async def act() -> None:
        await stage.uploaded()

    return act


async def _prepare(stage: Stage) -> Act:
    run_id = await stage.uploaded()

    async def act() -> None:
        await stage.client.prepare(run_id)

    return act


async def _prepare_on_gpu(stage: Stage) -> Act:
    run_id = await stage.uploaded()

    async def act() -> None:
        await stage.client.prepare(run_id, BIG.uuid)

    return act


async def _prepare_cold(stage: Stage) -> Act:
    run_id = await stage.uploaded()
    root = stage.data_dir / "environments"
    for built in [*root.glob("[0-9a-f]*"), *(root / ".locks").glob("*")]:
        if built.is_dir():
            await asyncio.to_thread(shutil.rmtree, built)
        else:
            built.unlink()

    async def act() -> None:
        await stage.client.prepare(run_id)

    return act


async def _fail_to_prepare(stage: Stage) -> Act:
    run_id = await stage.client.upload(unary(f"Nothing{next(_names)}"), None)

    async def act() -> None:
        await stage.client.prepare(run_id, BIG.uuid)

    return act


async def _deploy(stage: Stage) -> Act:
    run_id = await stage.prepared(BIG.uuid)

    async def act() -> None:
        await stage.client.deploy(run_id)

    return act


async def _fail_to_deploy(stage: Stage) -> Act:
    run_id = await stage.prepared(BIG.uuid)
    stage.client.runs[run_id].value = None
    [file] = (stage.data_dir / "models" / run_id).glob("model.*")
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[: len(whole) // 2])

    async def act() -> None:
        await stage.client.deploy(run_id)

    return act


async def _hand_over(stage: Stage) -> Act:
    run_id = await stage.deployed(BIG.uuid)

    async def act() -> None:
        await stage.client.deploy(run_id)

    return act


async def _hand_over_to_another(stage: Stage) -> Act:
    model = f"shared-{next(_names)}"
    await stage.deployed(BIG.uuid, model)
    newer = await stage.prepared(SMALL.uuid, model)

    async def act() -> None:
        await stage.client.deploy(newer)

    return act


async def _stop(stage: Stage) -> Act:
    run_id = await stage.deployed(BIG.uuid)

    async def act() -> None:
        if stage.client.runs[run_id].rollout("dev").stop != "told":
            await stage.client.stop(run_id)

    return act


async def _delete(stage: Stage) -> Act:
    run_id = await stage.deployed(BIG.uuid)

    async def act() -> None:
        await _delete_once(stage, run_id)

    return act


async def _delete_in_preparation(stage: Stage) -> Act:
    run_id = await stage.uploaded()

    async def act() -> None:
        if not stage.client.runs[run_id].deleted:
            await stage.client.start_preparing(run_id, BIG.uuid)
        await _delete_once(stage, run_id)

    return act


async def _delete_the_newer(stage: Stage) -> Act:
    model = f"shared-{next(_names)}"
    older = await stage.deployed(model=model)
    newer = await stage.prepared(model=model)
    stage.client.runs[newer].value = None
    [file] = (stage.data_dir / "models" / newer).glob("model.*")
    file.unlink()
    file.write_bytes(b"broken")
    await stage.client.deploy(newer)

    async def act() -> None:
        # The older one still serves, and becomes the wanted one again.
        stage.client.restore(older, newer)
        await _delete_once(stage, newer)

    return act


async def _delete_once(stage: Stage, run_id: str) -> None:
    if stage.client.runs[run_id].deleted != "told":
        await stage.client.delete(run_id)


async def _boot(stage: Stage) -> Act:
    await stage.deployed(BIG.uuid)
    run_id = await stage.uploaded()
    await stage.client.start_preparing(run_id, SMALL.uuid)
    await stage.service.kill()

    async def act() -> None:
        with contextlib.suppress(AssertionError):
            await stage.service.ready()

    return act


async def _shut_down(stage: Stage) -> Act:
    await stage.deployed(BIG.uuid)
    run_id = await stage.uploaded()

    async def act() -> None:
        await stage.client.start_preparing(run_id)
        await stage.service.stop()

    return act


_PREPARE = tuple(
    point
    for point in Point
    if point.startswith("prepare.")
    and point
    not in {
        Point.PREPARE_INSTALLED,
        Point.PREPARE_MARKED,
        Point.PREPARE_FAILING,
        Point.PREPARE_FAILED,
    }
)
_DEPLOY = (
    Point.DEPLOY_WANTED,
    Point.DEPLOY_LISTENING,
    Point.DEPLOY_DESCRIBED,
    Point.DEPLOY_SPAWNED,
    Point.DEPLOY_READY,
    Point.DEPLOY_ACCEPTING,
    Point.DEPLOY_SEEN,
)
_HAND_OVER = (Point.HANDOVER_RETREATED, Point.HANDOVER_DRAINED, Point.HANDOVER_ENDED)

WAYS = (
    Way("upload", _upload, tuple(p for p in Point if p.startswith("upload.")), 1),
    Way("prepare", _prepare, _PREPARE, 8),
    Way("prepare on a GPU", _prepare_on_gpu, (Point.PREPARE_LEASED, Point.PREPARE_DEVICE), 8),
    Way(
        "prepare without an environment",
        _prepare_cold,
        (
            Point.PREPARE_ENVIRONMENT,
            Point.PREPARE_LOCKED,
            Point.PREPARE_INSTALLED,
            Point.PREPARE_MARKED,
            Point.PREPARE_ENVIRONMENT_DONE,
        ),
    ),
    Way(
        "fail to prepare",
        _fail_to_prepare,
        (Point.PREPARE_PROVING, Point.PREPARE_FAILING, Point.PREPARE_FAILED),
        6,
    ),
    Way("deploy", _deploy, (*_DEPLOY, Point.DEPLOY_PORT_KEPT), 3),
    Way("fail to deploy", _fail_to_deploy, (Point.DEPLOY_FAILING, Point.DEPLOY_FAILED), 3),
    Way("hand over", _hand_over, (*_DEPLOY, *_HAND_OVER), 2),
    Way(
        "hand over to another run",
        _hand_over_to_another,
        (*_DEPLOY, *_HAND_OVER, Point.HANDOVER_RELEASED),
        3,
    ),
    Way("stop", _stop, (*(p for p in Point if p.startswith("stop.")), *_HAND_OVER[1:]), 3),
    Way("delete", _delete, (*(p for p in Point if p.startswith("delete.")), *_HAND_OVER[1:]), 2),
    Way(
        "delete in preparation",
        _delete_in_preparation,
        tuple(p for p in Point if p.startswith("delete.")),
        2,
    ),
    Way(
        "delete the newer of two",
        _delete_the_newer,
        (Point.DELETE_CANCELLED, Point.DELETE_FORGOTTEN, Point.DELETE_DOWN),
        2,
    ),
    Way(
        "start",
        _boot,
        tuple(p for p in Point if p.startswith(("boot.", "housekeeping."))),
        3,
        is_restart=True,
        # The history is kept every five seconds.
        after=8,
    ),
    Way(
        "shut down",
        _shut_down,
        tuple(p for p in Point if p.startswith("shutdown.")),
        2,
        is_restart=True,
    ),
)

_ONLY = os.environ.get("TEST_FAULTS_WAY", "")
CHOSEN = tuple(way for way in WAYS if _ONLY in {"", way.name})
"""Those that a test run goes: all, unless one is named."""
