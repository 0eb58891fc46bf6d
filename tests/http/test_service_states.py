"""Any order of what callers do, restarts and crashes: the service stays what it has said it is."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from server import keys
from server.states import Phase
from tests.support import onnx_files
from tests.support.beliefs import CPU, OK, Answer, Beliefs, Key, Rollout, Run
from tests.support.fuzzing import SECONDS, examples
from tests.support.looks import Looks
from tests.support.observed import Observer
from tests.support.rushes import MAY_REFUSE, Done, Plan, assert_kept, request_of, together
from tests.support.service import Caller
from tests.support.weightless import Machine, Model, WeightlessService

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ENVIRONMENTS = ("dev", "prod")
OWNERS = 2
MOST_RUNS = 8
LEASE_SECONDS = 1000.0
MODEL = onnx_files.linear()
SETTLE_SECONDS, HANG_SECONDS = 30.0, 60.0
COUNTED = Counter[str]()

picks = st.integers(0, MOST_RUNS - 1)
environments = st.sampled_from(ENVIRONMENTS)
devices = st.sampled_from([None, CPU, "GPU-a", "GPU-b", "GPU-of-another-machine"])
clicks = st.sampled_from([2, 5, 50])
verbs = st.sampled_from(sorted(MAY_REFUSE))


class ServiceStates(RuleBasedStateMachine):
    """Holds the service against the beliefs, after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        # Every transaction is synced: thousands of them are quick in memory only.
        memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.machine = Machine()
        self.beliefs = Beliefs(self.machine.cards)
        self.service = WeightlessService(
            Path(self.folder.name),
            self.machine,
            environments=ENVIRONMENTS,
            lease_seconds=LEASE_SECONDS,
        )
        self.observer = Observer(self.service)
        self.looks = Looks(self.ask, self.beliefs, OWNERS)
        self.journal: list[str] = []
        """What was asked and what happened, for failures that do not come again."""
        self.callers: list[Caller] = []
        # Whether anybody did anything since the service began its present life.
        self.has_news = True
        self.run(self._open())

    def run(self, work: Awaitable[Any]) -> Any:
        try:
            return self.loop.run_until_complete(asyncio.wait_for(work, HANG_SECONDS))
        except TimeoutError:
            raise AssertionError("it hangs", self.journal[-60:]) from None

    async def _open(self) -> None:
        await self.service.__aenter__()
        self.callers = [Caller(self.service.url) for _ in range(OWNERS)]

    def teardown(self) -> None:
        COUNTED["examples"] += 1
        try:
            self.machine.let_go()
            self.run(self._close())
        finally:
            self.loop.close()
            self.folder.cleanup()

    async def _close(self) -> None:
        await together(caller.http.close() for caller in self.callers)
        await self.service.__aexit__()
        # A connection that was being made when its task ended is let go by a thread of its own.
        while any("_connection_worker_thread" in one.name for one in threading.enumerate()):
            await asyncio.sleep(0.001)

    # ── how it is asked
    def pick(self, number: int) -> Run | None:
        living = list(self.beliefs.runs.values())
        return living[number % len(living)] if living else None

    async def call(self, owner: int, method: str, path: str) -> tuple[int, Any]:
        self.has_news = True
        COUNTED["requests"] += 1
        self.journal.append(f"{method} {path}")
        status, body = await self.callers[owner].call(method, self.service.url + path)
        self.journal.append(f"{status} of {path}")
        return status, body

    async def send(self, owner: int, content: Model, name: str) -> str:
        self.has_news = True
        caller = self.callers[owner]
        caller.url = self.service.url
        return await caller.upload(MODEL, content.value, name or None)

    async def ask(self, owner: int, method: str, path: str, expected: Answer) -> Any:
        status, body = await self.call(owner, method, path)
        assert (status, "" if status == 200 else body["code"]) == expected, (path, body)
        return body

    # ── rules: what callers do
    @initialize(content=st.sampled_from([Model.SOUND, Model.UNSERVABLE]), gpu=devices)
    def begin(self, content: Model, gpu: str | None) -> None:
        for owner in range(OWNERS):
            self.upload(owner, content, "shared")
        self.prepare(0, gpu)

    @rule(
        owner=st.integers(0, OWNERS - 1),
        content=st.sampled_from([Model.SOUND, Model.SOUND, *Model]),
        name=st.sampled_from(["shared", ""]),
    )
    def upload(self, owner: int, content: Model, name: str) -> None:
        if len(self.beliefs.runs) >= MOST_RUNS:
            return
        run_id = self.run(self.send(owner, content, name))
        self.observer.owners[self.service.store.runs[run_id].owner] = owner
        self.beliefs.uploaded(run_id, owner, name, content)

    @precondition(lambda self: not self.beliefs.is_held)
    @rule(
        owner=st.integers(0, OWNERS - 1),
        content=st.sampled_from([Model.SOUND, Model.UNSERVABLE]),
        gpu=st.sampled_from([None, CPU]),
        environment=environments,
    )
    def ship(self, owner: int, content: Model, gpu: str | None, environment: str) -> None:
        if len(self.beliefs.runs) < MOST_RUNS:
            self.upload(owner, content, "shared")
            newest = len(self.beliefs.runs) - 1
            self.prepare(newest, gpu)
            self.run(self.settled())
            self.deploy(newest, environment, 1)

    @rule(number=picks, gpu=devices)
    def prepare(self, number: int, gpu: str | None) -> None:
        run = self.pick(number)
        if run is None:
            return
        before = run.attempt
        path = f"/prepare/start?runId={run.run_id}" + (f"&gpuId={gpu}" if gpu else "")
        expected = self.beliefs.start_preparation(run.run_id, gpu)
        body = self.run(self.ask(run.owner, "POST", path, expected))
        if expected == OK:
            assert body["attempt"] == run.attempt
            assert body["device"] == run.device
            assert run.attempt == before or body["phase"] in {Phase.RUNNING, run.phase}

    @rule(number=picks, environment=environments, replicas=st.integers(1, 2))
    def deploy(self, number: int, environment: str, replicas: int) -> None:
        run = self.pick(number)
        if run is None:
            return
        path = f"/deploy/start?runId={run.run_id}&env={environment}&replicas={replicas}"
        expected = self.beliefs.start_deployment(run.run_id, environment, replicas)
        body = self.run(self.ask(run.owner, "POST", path, expected))
        if expected == OK:
            assert body["version"] == str(self.rollout(run, environment).newest.number)

    @rule(number=picks, environment=environments)
    def stop(self, number: int, environment: str) -> None:
        run = self.pick(number)
        if run is None:
            return
        path = f"/deploy/stop?runId={run.run_id}&env={environment}"
        expected = self.beliefs.stop_deployment(run.run_id, environment)
        self.run(self.ask(run.owner, "POST", path, expected))

    @rule(number=picks)
    def delete(self, number: int) -> None:
        run = self.pick(number)
        if run is None:
            return
        expected = self.beliefs.delete(run.run_id)
        self.run(self.ask(run.owner, "DELETE", f"/runs/{run.run_id}", expected))
        # The answer comes when it is done.
        assert run.run_id not in {one.spec.run_id for one in self.machine.serving}
        assert not self.machine.preparing[run.run_id]
        assert run.run_id not in self.service.store.leases.values()

    # ── rules: what happens
    @precondition(lambda self: not self.beliefs.is_held)
    @rule()
    def hold(self) -> None:
        self.journal.append("hold")
        self.machine.hold()
        self.beliefs.is_held = True

    @precondition(lambda self: self.beliefs.is_held)
    @rule()
    def let_go(self) -> None:
        self.journal.append("let_go")
        self.machine.let_go()
        self.beliefs.let_go()

    @rule(is_cut=st.booleans())
    def begin_anew(self, is_cut: bool) -> None:
        if not self.has_news:
            return
        COUNTED["restarts"] += 1
        self.journal.append("cut" if is_cut else "restart")
        self.run(self.service.cut() if is_cut else self.service.restart())
        self.beliefs.restarted()
        self.has_news = False

    @rule(card=st.sampled_from(["GPU-a", "GPU-b"]))
    def stranger_comes_or_goes(self, card: str) -> None:
        self.machine.busy ^= {card}
        self.beliefs.busy ^= {card}

    @rule(is_long=st.booleans())
    def time_passes(self, is_long: bool) -> None:
        if is_long:
            self.machine.ahead_seconds += LEASE_SECONDS + 60
            self.beliefs.expire_leases()
        self.run(self.service.app[keys.DEVICES].expire_leases())

    @rule(number=picks, ordinal=st.integers(0, 1))
    def crash(self, number: int, ordinal: int) -> None:
        live = [key for key, made in self.beliefs.rollouts.items() if made.live is not None]
        if self.beliefs.is_held or not live:
            return
        key = live[number % len(live)]
        up = [one for one in self.machine.serving if self.observer.key_of(one.spec.key) == key]
        # Of one that crashed a moment ago there may be none yet.
        if up:
            up[ordinal % len(up)].crash()
            self.beliefs.crashed(key)

    # ── rules: many clicks at once
    @rule(number=picks, environment=environments, count=clicks)
    def double_click_on_deploy(self, number: int, environment: str, count: int) -> None:
        run = self.pick(number)
        if run is None:
            return
        was_held = self.beliefs.is_held
        # A model takes longer to get ready than a double click.
        self.hold()
        expected = self.beliefs.start_deployment(run.run_id, environment, 1)
        path = f"/deploy/start?runId={run.run_id}&env={environment}&replicas=1"
        calls = [self.ask(run.owner, "POST", path, expected) for _ in range(count)]
        answers = self.run(together(calls))
        if expected == OK:
            newest = self.rollout(run, environment).newest
            assert {body["version"] for body in answers} == {str(newest.number)}
        if not was_held:
            self.let_go()

    @rule(number=picks, gpu=devices, count=clicks)
    def double_click_on_prepare(self, number: int, gpu: str | None, count: int) -> None:
        run = self.pick(number)
        # One that cannot be read fails within the double click; the next click is an attempt more.
        if run is None or run.content is Model.UNREADABLE:
            return
        was_held = self.beliefs.is_held
        self.hold()
        expected = self.beliefs.start_preparation(run.run_id, gpu)
        path = f"/prepare/start?runId={run.run_id}" + (f"&gpuId={gpu}" if gpu else "")
        calls = [self.ask(run.owner, "POST", path, expected) for _ in range(count)]
        answers = self.run(together(calls))
        if expected == OK:
            assert {body["attempt"] for body in answers} == {run.attempt}
        if not was_held:
            self.let_go()

    @rule(number=picks, count=clicks)
    def double_click_on_delete(self, number: int, count: int) -> None:
        run = self.pick(number)
        if run is None:
            return
        calls = [self.call(run.owner, "DELETE", f"/runs/{run.run_id}") for _ in range(count)]
        statuses = [status for status, _ in self.run(together(calls))]
        self.beliefs.delete(run.run_id)
        assert 200 in statuses
        assert set(statuses) <= {200, 404}

    # ── rules: everything at once
    @rule(
        plans=st.lists(st.tuples(verbs, picks, environments, devices), min_size=2, max_size=8),
        is_slow=st.booleans(),
        cut_after=st.none() | st.integers(0, 30),
    )
    def rush(self, plans: list[Plan], is_slow: bool, cut_after: int | None) -> None:
        """Several things at once; what comes of them is one of several good ends."""
        if not self.beliefs.runs:
            return
        if self.beliefs.is_held and not is_slow:
            self.let_go()
        if is_slow and not self.beliefs.is_held:
            self.hold()
        before = deepcopy(self.beliefs)
        self.journal.append("rush")
        acknowledged = self.run(self._rush(plans, cut_after))
        self.journal.append("let_go")
        self.machine.let_go()
        self.beliefs.is_held = False
        self.run(self.until_empty(self.observer.contradictions))
        self.observer.adopt(self.beliefs)
        assert_kept(before, self.beliefs, acknowledged)

    async def _rush(self, plans: list[Plan], cut_after: int | None) -> list[Done]:
        work = [asyncio.create_task(self._do(plan)) for plan in plans]
        if cut_after is None:
            return await together(work)
        for _ in range(cut_after):
            await asyncio.sleep(0.0002)
        acknowledged = [task.result() for task in work if task.done()]
        self.journal.append("cut")
        await self.service.cut()
        await asyncio.gather(*work, return_exceptions=True)
        return acknowledged

    async def _do(self, plan: Plan) -> Done:
        verb, number, environment, _ = plan
        run = self.pick(number)
        assert run is not None
        if verb == "upload":
            body = {"runId": await self.send(run.owner, run.content, run.name)}
            status = 200
        else:
            status, body = await self.call(run.owner, *request_of(plan, run))
        assert status in {200, *MAY_REFUSE[verb]}, (plan, status, body)
        return Done(verb, run, environment, status, body)

    # ── what has to hold
    def rollout(self, run: Run, environment: str) -> Rollout | None:
        return self.beliefs.rollouts.get(Key(run.owner, run.name, environment))

    @invariant()
    def all_is_as_believed(self) -> None:
        COUNTED["steps"] += 1
        self.run(self.settled())
        assert self.machine.most_preparing <= 1
        self.observer.assert_cards_are_not_shared(self.beliefs)

    async def settled(self) -> None:
        await self.until_empty(lambda: self.observer.differences(self.beliefs))

    async def until_empty(self, look: Callable[[], Any]) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while wrong := look():
            if time.monotonic() > deadline:
                raise AssertionError(wrong, self.journal[-60:])
            await asyncio.sleep(0.001)

    @rule(number=picks, environment=environments)
    def look(self, number: int, environment: str) -> None:
        run = self.pick(number)
        if run is not None:
            self.run(self.looks.at(run, environment))

    @rule(number=picks, owner=st.integers(0, OWNERS - 1))
    def look_at_a_deleted_one(self, number: int, owner: int) -> None:
        gone = sorted(self.beliefs.deleted)
        if gone:
            self.run(self.looks.at_nothing(gone[number % len(gone)], owner))


# What is made smaller has to fail again, which may depend on the moment: a failure is shown whole.
AS_IT_CAME = (hypothesis.Phase.explicit, hypothesis.Phase.generate)


@pytest.mark.timeout(2 * SECONDS)
def test_whatever_callers_do_the_service_stays_what_it_said() -> None:
    run_state_machine_as_test(
        ServiceStates, settings=settings(examples(12), stateful_step_count=30, phases=AS_IT_CAME)
    )
    sys.stdout.write(f"{dict(COUNTED)}\n")
