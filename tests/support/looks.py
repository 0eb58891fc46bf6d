"""Looks at runs as their owners and others do, over HTTP, and holds them against the beliefs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.states import Phase, Step
from tests.support.beliefs import OK, UNKNOWN, Answer, Beliefs, Key, Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Ask = Callable[[int, str, str, Answer], Awaitable[Any]]

_OF_PREPARATION = ("event_uploaded", "event_prepar", "event_step_")
_AT_ONCE = 5
_IN_ORDER = [Phase.SUCCEEDED, Phase.RUNNING, Phase.FAILED, Phase.PENDING]


class Looks:
    """Remembers what was seen, since some of it may never change and some never go back."""

    def __init__(self, ask: Ask, beliefs: Beliefs, owners: int) -> None:
        self._ask = ask
        self._beliefs = beliefs
        self._owners = owners
        self._updated: dict[tuple[str, str], str] = {}
        self._completed: dict[tuple[str, int, str], str] = {}
        self._happened: dict[str, list[Any]] = {}

    async def at(self, run: Run, environment: str) -> None:
        """Look at everything of a run, as its owner and as somebody else."""
        run_id, owner = run.run_id, run.owner
        prepare, gpus = f"/prepare/status?runId={run_id}", f"/prepare/gpus?runId={run_id}"
        deploy = f"/deploy/status?runId={run_id}&env={environment}"
        summary = f"/monitor/summary?runId={run_id}"
        events = f"/runs/{run_id}/events"
        for path in (prepare, gpus, deploy, summary, events, f"/runs/{run_id}/logs"):
            await self._ask((owner + 1) % self._owners, "GET", path, UNKNOWN)
        self._check_preparation(run, await self._ask(owner, "GET", prepare, OK))
        options = await self._ask(owner, "GET", gpus, OK)
        assert [option["id"] for option in options] == self._beliefs.options(run_id)
        self._check_deployment(run, environment, await self._ask(owner, "GET", deploy, OK))
        await self._ask(owner, "GET", summary, OK)
        known = self._happened.setdefault(run_id, [])
        after = known[-1]["sequence"] if known else 0
        known += (await self._ask(owner, "GET", f"{events}?after={after}", OK))["events"]
        self._check_timeline(run, environment, await self._ask(owner, "GET", events, OK))
        listed = await self._ask(owner, "GET", "/runs", OK)
        mine = [one.run_id for one in self._beliefs.runs.values() if one.owner == owner]
        assert [one["runId"] for one in listed["runs"]] == mine[::-1]

    async def at_nothing(self, run_id: str, owner: int) -> None:
        """Ask for a run that was deleted."""
        for method, path in (
            ("GET", f"/prepare/status?runId={run_id}"),
            ("POST", f"/prepare/start?runId={run_id}"),
            ("POST", f"/deploy/start?runId={run_id}&env=dev"),
            ("GET", f"/deploy/status?runId={run_id}&env=dev"),
            ("DELETE", f"/runs/{run_id}"),
        ):
            await self._ask(owner, method, path, UNKNOWN)

    def _check_preparation(self, run: Run, body: Any) -> None:
        assert body["phase"] == run.phase
        assert [step["name"] for step in body["steps"]] == [step.value for step in Step]
        statuses = [step["status"] for step in body["steps"]]
        assert statuses == sorted(statuses, key=_IN_ORDER.index)
        assert statuses.count(Phase.RUNNING) == (run.phase is Phase.RUNNING)
        assert statuses.count(Phase.FAILED) == (run.phase is Phase.FAILED)
        if run.phase is Phase.SUCCEEDED:
            assert set(statuses) == {Phase.SUCCEEDED}
            for step in body["steps"]:
                key = (run.run_id, run.attempt, step["name"])
                assert self._completed.setdefault(key, step["completedAt"]) == step["completedAt"]
        self._check_time(run.run_id, "", body)

    def _check_deployment(self, run: Run, environment: str, body: Any) -> None:
        made = self._beliefs.rollouts.get(Key(run.owner, run.name, environment))
        assert (body["runId"], body["environment"]) == (run.run_id, environment)
        if made is None or made.newest.run_id != run.run_id:
            assert body["phase"] == Phase.PENDING
            assert "version" not in body
            return
        assert (body["phase"], body["version"]) == (made.phase, str(made.newest.number))
        assert body.get("servingVersion") == (made.live and str(made.live.number))
        self._check_time(run.run_id, environment, body)

    def _check_timeline(self, run: Run, environment: str, body: Any) -> None:
        found = body["events"]
        # None is lost and none comes twice, whenever the service was cut; one may come just now.
        known = self._happened[run.run_id]
        assert found[: len(known)] == known, (known, found)
        assert len(found) <= len(known) + _AT_ONCE
        numbers = [event["sequence"] for event in found]
        assert numbers == sorted(set(numbers))
        assert body["sequence"] == numbers[-1]
        last = [event for event in found if event["code"].startswith(_OF_PREPARATION)][-1]
        ended = {"event_prepared": Phase.SUCCEEDED, "event_step_failed": Phase.FAILED}
        under_way = Phase.PENDING if last["code"] == "event_uploaded" else Phase.RUNNING
        assert ended.get(last["code"], under_way) == run.phase
        wanted = [
            int(event["version"])
            for event in found
            if (event["code"], event.get("environment")) == ("event_deploy_wanted", environment)
        ]
        made = self._beliefs.rollouts.get(Key(run.owner, run.name, environment))
        if made is not None and made.newest.run_id == run.run_id:
            assert wanted[-1] == made.newest.number

    def _check_time(self, run_id: str, environment: str, body: Any) -> None:
        if "updatedAt" in body:
            assert body["updatedAt"] >= self._updated.get((run_id, environment), "")
            self._updated[run_id, environment] = body["updatedAt"]
