"""Several requests at once: what each may be answered, and what has to be true afterwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from server.states import Phase
from tests.support.beliefs import Beliefs, Key, Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

MAY_REFUSE: Mapping[str, set[int]] = {
    "prepare": {400, 404, 409},
    "deploy": {404, 409},
    "stop": {404},
    "delete": {404},
    "upload": set(),
}
"""By what somebody does: the statuses other than 200 that may come of it."""

Plan = tuple[str, int, str, str | None]
"""What is to be done, with which run, in which environment, on which device."""


class Done(NamedTuple):
    """What somebody did, and how it was answered."""

    verb: str
    run: Run
    environment: str
    status: int
    body: Any


def assert_kept(before: Beliefs, after: Beliefs, acknowledged: list[Done]) -> None:
    """Nothing that was there or was acknowledged is gone unless somebody took it away."""
    good = [done for done in acknowledged if done.status == 200]
    deleted = {done.run.run_id for done in good if done.verb == "delete"}
    assert not deleted & set(after.runs)
    for done in good:
        if done.verb == "upload":
            assert done.body["runId"] in after.runs
        run = after.runs.get(done.run.run_id)
        if run is None:
            continue
        if done.verb == "prepare":
            assert run.phase is not Phase.PENDING
            assert run.attempt >= done.body["attempt"]
        made = after.rollouts.get(Key(run.owner, run.name, done.environment))
        if done.verb == "deploy" and made is not None:
            assert made.newest.number >= int(done.body["version"])
    for run_id, old in before.runs.items():
        run = after.runs.get(run_id)
        assert run is None or run.attempt >= old.attempt


async def together(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Wait for all of them, begun at once."""
    return list(await asyncio.gather(*calls))


def request_of(plan: Plan, run: Run) -> tuple[str, str]:
    """Return the method and the path of what is not an upload."""
    verb, _, environment, gpu = plan
    chosen = f"&gpuId={gpu}" if gpu else ""
    return {
        "prepare": ("POST", f"/prepare/start?runId={run.run_id}{chosen}"),
        "deploy": ("POST", f"/deploy/start?runId={run.run_id}&env={environment}"),
        "stop": ("POST", f"/deploy/stop?runId={run.run_id}&env={environment}"),
        "delete": ("DELETE", f"/runs/{run.run_id}"),
    }[verb]
