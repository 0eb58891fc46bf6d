"""Work on environments that several callers wait for, done once for all of them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.errors import StepFailedError
from server.machine import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Progress = Callable[[str, dict[str, Any]], None]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Shared:
    task: asyncio.Task[Any]
    listeners: list[Progress] = field(default_factory=list)


class SharedWork:
    """Work by key, each with a deadline of ``seconds``; it goes on when a caller is cancelled."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: dict[str, _Shared] = {}

    @property
    def is_running(self) -> bool:
        """Whether any work is under way."""
        return bool(self._running)

    async def close(self) -> None:
        """End all work that is under way."""
        tasks = [shared.task for shared in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def do(
        self,
        key: str,
        progress: Progress | None,
        work: Callable[[Progress], Coroutine[Any, Any, Any]],
    ) -> Any:
        """Return what the work of this key returns; begin it if nobody has.

        Raises:
            StepFailedError: what the work raises; ``environment_timed_out``, ``disk_full`` or
                ``environment_failed``.
        """
        shared = self._running.get(key)
        if shared is None:
            listeners: list[Progress] = []

            last: list[tuple[str, dict[str, Any]]] = []

            def say(code: str, params: dict[str, Any]) -> None:
                if last == [(code, params)]:
                    return
                last[:] = [(code, params)]
                for listener in listeners:
                    listener(code, params)

            task = asyncio.create_task(self._deadline(work(say)))
            # A failure that no caller waited for to the end is not an error of the loop.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            shared = self._running[key] = _Shared(task, listeners)
            task.add_done_callback(lambda _: self._running.pop(key, None))
        if progress is not None:
            shared.listeners.append(progress)
        try:
            return await asyncio.shield(shared.task)
        finally:
            if progress is not None:
                shared.listeners.remove(progress)

    async def _deadline(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            async with asyncio.timeout(self._seconds):
                return await work
        except TimeoutError:
            raise StepFailedError("environment_timed_out", seconds=round(self._seconds)) from None
        except OSError as error:
            known = explained(error)
            if known is not None:
                raise StepFailedError(known.code, **known.params) from None
            logger.exception("a model environment could not be built")
            raise StepFailedError(
                "environment_failed", evidence=error.strerror or type(error).__name__
            ) from None
