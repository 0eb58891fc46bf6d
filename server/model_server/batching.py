"""Runs predictions, several requests in one call where that was proven to be safe.

What waits is put together the moment something can run it: while nothing runs, a request is
never held back for company. A thread cannot be stopped. A prediction that passes its deadline is
answered, and its thread is given a short grace: if it comes back, work goes on; if not,
``on_lost`` tells the process that it has to be replaced.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Sequence, Tuple

from server.model_server.batches import key_of, rows_of
from server.model_server.failures import ModelFailure
from server.model_server.jobs import Answer, Done, Job, Result, grouped, guarded, run_together
from server.model_server.runtimes.base import Loaded, Runtime
from server.model_server.scheduling import Plan
from server.model_server.statistics import Statistics

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 128
"""Predictions that may wait for a thread; one more is refused as overload."""
INLINE_LIMIT = 1024
"""Predictions that may come in one turn of the event loop, where they take no thread."""
LEFT_SECONDS = 1.0
"""How long a request waits for its turn after which it is dropped if its client seems gone."""
GRACE_SECONDS = 5.0
"""How long a thread may stay with a prediction after its deadline."""
_WATCH_SECONDS = 0.5


class Batcher:
    """Hands predictions to the runtime.

    ``seconds`` bounds a prediction's waiting, and again its running. All methods belong to the
    event loop; the callbacks are called in it, but for ``on_wedged``, which comes from a thread
    of its own when a prediction hangs in the event loop itself.
    """

    def __init__(
        self,
        *,
        seconds: float,
        grace: float = GRACE_SECONDS,
        limit: int = QUEUE_LIMIT,
        on_stuck: Callable[[], None] = lambda: None,
        on_recovered: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None] = lambda: None,
        on_wedged: Callable[[], None] = lambda: None,
    ) -> None:
        self._runtime: Optional[Runtime] = None
        self._plan = Plan()
        self._seconds = seconds
        self._grace = grace
        self._limit = limit
        self._on_stuck = on_stuck
        self._on_recovered = on_recovered
        self._on_lost = on_lost
        self._on_wedged = on_wedged
        self._loop = asyncio.get_running_loop()
        self.statistics = Statistics()
        # Of this turn of the event loop, to be run in it.
        self._turn: List[Job] = []
        self._inline_since: Optional[float] = None
        # For the threads; guarded by the condition.
        self._waiting: Deque[Job] = deque()
        self._wakes = threading.Condition()
        self._is_closed = False
        self._jobs: Dict[Job, None] = {}
        self._stuck: Dict[Job, None] = {}
        self._deadline: Optional[asyncio.TimerHandle] = None
        self._lost_timer: Optional[asyncio.TimerHandle] = None

    @property
    def is_stuck(self) -> bool:
        """Whether a running prediction has passed its deadline."""
        return bool(self._stuck)

    @property
    def is_full(self) -> bool:
        """Whether one more prediction would be refused."""
        return len(self._jobs) > self._limit or len(self._turn) > INLINE_LIMIT

    @property
    def plan(self) -> Plan:
        """How predictions are run."""
        return self._plan

    async def load(
        self, load: Callable[[], Tuple[Runtime, Loaded]], plan: Callable[[Runtime], Plan]
    ) -> Loaded:
        """Load the model in a thread and plan how to run it; there is no deadline on this.

        Raises:
            ModelFailure: whatever ``load`` raises, or ``model_raised``.
        """
        loading: asyncio.Future[Tuple[Runtime, Loaded]] = self._loop.create_future()

        def run() -> None:
            made, error = guarded(load)
            self._tell(_settle, loading, made, error)

        _thread(run, "load")
        runtime, loaded = await loading
        self._plan = plan(runtime)
        self._runtime = runtime
        for number in range(self._plan.workers):
            _thread(self._work, f"predict-{number}")
        if self._plan.inline_elements:
            _thread(self._watch, "watch")
        return loaded

    def submit(
        self,
        inputs: Mapping[str, Any],
        outputs: Optional[Sequence[str]],
        done: Done,
        *,
        counts: bool = True,
    ) -> Job:
        """Take one request; ``done`` is called later, with its answer or its failure.

        ``counts`` says whether the statistics know of it.

        The failure is a ``BadInputError`` if the runtime found that the inputs do not fit, or a
        ``ModelFailure``: ``replica_overloaded``, ``replica_restarting``,
        ``prediction_timed_out``, ``model_out_of_memory`` or ``model_raised``.

        Raises:
            ModelFailure: ``replica_loading``, ``replica_overloaded`` or ``replica_restarting``.
        """
        if self._runtime is None:
            raise ModelFailure("replica_loading")
        if self._stuck or self._is_closed:
            raise ModelFailure("replica_restarting")
        if self.is_full:
            raise ModelFailure("replica_overloaded")
        job = Job(inputs, outputs, done, counts)
        plan = self._plan
        if plan.max_rows > 1:
            job.rows = rows_of(inputs)
            if job.rows:
                job.key = key_of(inputs, outputs)
        if plan.inline_elements and _elements(inputs) <= plan.inline_elements:
            if not self._turn:
                self._loop.call_soon(self._run_turn)
            self._turn.append(job)
            return job
        self._jobs[job] = None
        if self._deadline is None:
            self._deadline = self._loop.call_later(self._seconds, self._expire)
        with self._wakes:
            self._waiting.append(job)
            self._wakes.notify()
        return job

    async def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Answer:
        """Answer one request that the statistics do not know of.

        Raises what ``submit`` raises and what it hands to ``done``.
        """
        answered: asyncio.Future[Answer] = self._loop.create_future()

        def done(answer: Optional[Answer], error: Optional[Exception]) -> None:
            _settle(answered, answer, error)

        self.submit(inputs, outputs, done, counts=False)
        return await answered

    def close(self) -> None:
        """Refuse what still waits and let the threads end after what they run."""
        for timer in (self._lost_timer, self._deadline):
            if timer is not None:
                timer.cancel()
        with self._wakes:
            self._is_closed = True
            self._wakes.notify_all()
        for job in list(self._jobs):
            self._end(job, None, ModelFailure("replica_restarting"))

    @property
    def _model(self) -> Runtime:
        assert self._runtime is not None  # noqa: S101 - nothing is taken before it is loaded
        return self._runtime

    # ── in the event loop

    def _run_turn(self) -> None:
        """Run what came in this turn of the event loop, put together where it fits."""
        turn, self._turn = self._turn, []
        for group in grouped(turn, self._plan.max_rows):
            self._inline_since = time.monotonic()
            results, took = run_together(self._model, group)
            self._inline_since = None
            self._deliver(group, results, took)

    def _deliver(self, group: Sequence[Job], results: Sequence[Result], took: float) -> None:
        if group[0].counts:
            self.statistics.executed(group, took)
        for job, (answer, error) in zip(group, results):
            self._end(job, answer, error)

    def _watch(self) -> None:
        """Notice, from a thread, that a prediction hangs in the event loop."""
        while not self._is_closed:
            time.sleep(min(_WATCH_SECONDS, self._seconds))
            since = self._inline_since
            if since is not None and time.monotonic() - since > self._seconds:
                logger.error("a prediction hangs in the event loop")
                self._on_wedged()
                return

    # ── in threads

    def _work(self) -> None:
        while True:
            with self._wakes:
                while not self._waiting and not self._is_closed:
                    self._wakes.wait()
                if self._is_closed:
                    return
                group = self._take()
            if not group:
                continue
            results, took = run_together(self._model, group)
            if not self._tell(self._finish, group, results, took):
                # The loop is closed: nobody is left to be answered.
                return

    def _take(self) -> List[Job]:
        """Take the first that waits, and those behind it that fit together with it."""
        first = self._waiting.popleft()
        group = [] if self._is_idle(first) else [first]
        room = self._plan.max_rows - first.rows
        if not group or first.key is None or room <= 0 or not self._waiting:
            return group
        left: Deque[Job] = deque()
        for job in self._waiting:
            if job.key != first.key or job.rows > room:
                left.append(job)
            elif not self._is_idle(job):
                group.append(job)
                room -= job.rows
        self._waiting = left
        return group

    def _is_idle(self, job: Job) -> bool:
        """Whether there is no use in running a job: it has ended, or nobody reads its answer.

        A client that has only ended its own side reads that there was too much to do.
        """
        if job.is_left and time.perf_counter() - job.came > LEFT_SECONDS:
            self._tell(self._end, job, None, ModelFailure("replica_overloaded"))
            return True
        return job.is_over

    def _tell(self, callback: Callable[..., None], *values: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback, *values)
        except RuntimeError:
            return False
        return True

    # ── the ends of jobs

    def _finish(self, group: Sequence[Job], results: Sequence[Result], took: float) -> None:
        self._deliver(group, results, took)
        was_stuck = bool(self._stuck)
        for job in group:
            self._stuck.pop(job, None)
        if was_stuck and not self._stuck:
            if self._lost_timer is not None:
                self._lost_timer.cancel()
            logger.warning("the prediction that was given up came back")
            self._on_recovered()

    def _end(self, job: Job, answer: Any, error: Optional[Exception]) -> None:
        self._jobs.pop(job, None)
        if job.is_over:
            return
        job.is_over = True
        if job.counts:
            self.statistics.ended(job, error)
        job.done(answer, error)

    def _expire(self) -> None:
        """End what has passed its deadline, and come back for the next that will."""
        self._deadline = None
        now = time.perf_counter()
        late = [job for job in self._jobs if (job.started or job.came) + self._seconds <= now]
        for job in late:
            if job.started:
                self._give_up(job)
            else:
                self._end(job, None, ModelFailure("replica_overloaded"))
        if self._jobs:
            due = min((job.started or job.came) for job in self._jobs) + self._seconds
            self._deadline = self._loop.call_later(max(due - now, 0.001), self._expire)

    def _give_up(self, job: Job) -> None:
        logger.error("a prediction has passed its deadline of %s s", self._seconds)
        if not self._stuck:
            self._lost_timer = self._loop.call_later(self._grace, self._lose)
        # Before the answer: its connection is not to be kept.
        self._stuck[job] = None
        self._end(job, None, ModelFailure("prediction_timed_out", seconds=f"{self._seconds:g}"))
        self._on_stuck()

    def _lose(self) -> None:
        logger.error("the prediction did not come back, so the process has to be replaced")
        self.close()
        self._on_lost()


def _thread(run: Callable[[], None], name: str) -> None:
    # A daemon, so that a prediction that never ends cannot hold the process at its exit.
    threading.Thread(target=run, name=name, daemon=True).start()


def _settle(future: asyncio.Future[Any], answer: Any, error: Optional[Exception]) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)


def _elements(inputs: Mapping[str, Any]) -> int:
    return sum(array.size for array in inputs.values())
