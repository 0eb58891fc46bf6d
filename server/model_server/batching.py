"""Runs predictions in one thread, with a bounded queue in front and a deadline on each.

A thread cannot be stopped. A prediction that passes its deadline is answered, and its thread is
given a short grace: if it comes back, work goes on; if not, ``on_lost`` tells the process that it
has to be replaced.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from functools import partial
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from server.model_server.evidence import one_line
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes.base import Loaded, Runtime

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 128
"""Predictions that may wait; one more is refused as overload."""
GRACE_SECONDS = 5.0
"""How long a thread may stay with a prediction after its deadline."""


class _Job:
    """One call on its way: waiting, running (``started`` is set) or ended."""

    __slots__ = ("answer", "call", "started", "timer")

    def __init__(self, call: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        self.call = call
        self.answer = answer
        self.started: Optional[float] = None
        self.timer: Optional[asyncio.TimerHandle] = None


class Batcher:
    """Hands predictions to the runtime, one at a time.

    ``seconds`` bounds a prediction's waiting, and again its running. All methods belong to the
    event loop; the callbacks are called in it.
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
    ) -> None:
        self._runtime: Optional[Runtime] = None
        self._seconds = seconds
        self._grace = grace
        self._limit = limit
        self._on_stuck = on_stuck
        self._on_recovered = on_recovered
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[Optional[_Job]] = queue.SimpleQueue()
        self._jobs: Dict[_Job, None] = {}
        self._stuck: Optional[_Job] = None
        self._lost_timer: Optional[asyncio.TimerHandle] = None
        # A daemon, so that a prediction that never ends cannot hold the process at its exit.
        self._thread = threading.Thread(target=self._work, name="predict", daemon=True)
        self._thread.start()

    @property
    def is_stuck(self) -> bool:
        """Whether the running prediction has passed its deadline."""
        return self._stuck is not None

    @property
    def is_full(self) -> bool:
        """Whether one more prediction would be refused."""
        return len(self._jobs) > self._limit

    async def load(self, load: Callable[[], Tuple[Runtime, Loaded]]) -> Loaded:
        """Load the model in the thread that will run it; there is no deadline on this.

        Raises:
            ModelFailure: whatever ``load`` raises, or ``model_raised``.
        """
        job = _Job(load, self._loop.create_future())
        self._waiting.put(job)
        answer: Tuple[Runtime, Loaded] = await job.answer
        self._runtime = answer[0]
        return answer[1]

    async def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Answer one request.

        Raises:
            BadInputError: the runtime found that the inputs do not fit.
            ModelFailure: ``replica_loading``, ``replica_overloaded``, ``replica_restarting``,
                ``prediction_timed_out``, ``model_out_of_memory`` or ``model_raised``.
        """
        if self._runtime is None:
            raise ModelFailure("replica_loading")
        if self.is_stuck:
            raise ModelFailure("replica_restarting")
        if self.is_full:
            raise ModelFailure("replica_overloaded")
        job = _Job(partial(self._runtime.predict, inputs, outputs), self._loop.create_future())
        self._jobs[job] = None
        job.timer = self._loop.call_later(self._seconds, self._expire, job)
        self._waiting.put(job)
        try:
            answer: Dict[str, Any] = await job.answer
        finally:
            self._jobs.pop(job, None)
        return answer

    def close(self) -> None:
        """Refuse what still waits and let the thread end after what it runs."""
        if self._lost_timer is not None:
            self._lost_timer.cancel()
        for job in list(self._jobs):
            self._end(job, None, ModelFailure("replica_restarting"))
        self._waiting.put(None)

    def _work(self) -> None:
        while True:
            job = self._waiting.get()
            if job is None:
                return
            if job.answer.done():
                continue
            job.started = time.monotonic()
            answer, error = self._run(job)
            try:
                self._loop.call_soon_threadsafe(self._finish, job, answer, error)
            except RuntimeError:
                # The loop is closed: nobody is left to be answered.
                return

    def _run(self, job: _Job) -> Tuple[Any, Optional[Exception]]:
        try:
            return job.call(), None
        except (BadInputError, ModelFailure) as error:
            return None, error
        # A model that calls sys.exit must not end the thread either.
        except BaseException as error:
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                return None, ModelFailure("model_out_of_memory")
            logger.warning("the model raised", exc_info=True)
            evidence = one_line(error)
            return None, ModelFailure("model_raised", evidence=evidence)

    def _finish(self, job: _Job, answer: Any, error: Optional[Exception]) -> None:
        self._end(job, answer, error)
        if job is self._stuck:
            self._stuck = None
            if self._lost_timer is not None:
                self._lost_timer.cancel()
            logger.warning("the prediction that was given up came back")
            self._on_recovered()

    def _end(self, job: _Job, answer: Any, error: Optional[Exception]) -> None:
        if job.timer is not None:
            job.timer.cancel()
        if job.answer.done():
            return
        if error is not None:
            job.answer.set_exception(error)
        else:
            job.answer.set_result(answer)

    def _expire(self, job: _Job) -> None:
        if job.started is None:
            self._end(job, None, ModelFailure("replica_overloaded"))
            return
        left = job.started + self._seconds - time.monotonic()
        if left > 0:
            job.timer = self._loop.call_later(left, self._expire, job)
            return
        logger.error("a prediction has passed its deadline of %s s", self._seconds)
        self._end(job, None, ModelFailure("prediction_timed_out", seconds=f"{self._seconds:g}"))
        self._stuck = job
        self._lost_timer = self._loop.call_later(self._grace, self._lose)
        self._on_stuck()

    def _lose(self) -> None:
        logger.error("the prediction did not come back, so the process has to be replaced")
        self.close()
        self._on_lost()
