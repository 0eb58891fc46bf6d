"""What Prometheus says of long windows: asked apart from the rate, and seldom, as it takes time."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from metrics.client import MetricsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metrics.reading import Name, Question, Reading
    from server.pipeline.sources import Sources

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 60.0
"""How often they are asked: a window of a day does not change to speak of within a minute."""

BELIEVED_SECONDS = 90.0
"""Age up to which an answer is shown while a newer one is on its way, or failed."""


class LongWindows:
    """The answers about one page's long windows.

    ``patience`` is for how many seconds the first answer is waited for; whoever asks meanwhile, or
    after a failure, gets what there is.
    """

    def __init__(self, sources: Sources, *, patience: float) -> None:
        self._sources = sources
        self._patience = patience
        self._answers: dict[Name, Reading] = {}
        self._asked: Mapping[Name, Question] = {}
        self._asked_at = -math.inf
        self._flight: asyncio.Task[None] | None = None

    async def answers(
        self, run_id: str, questions: Mapping[Name, Question], at: float
    ) -> dict[Name, Reading]:
        """Return what is known of these windows at a time, in seconds since 1970."""
        is_first = not self._asked
        if questions and self._flight is None and self._is_due(questions, at):
            self._asked, self._asked_at = questions, at
            self._flight = asyncio.create_task(self._ask(run_id, questions, at))
        if is_first and self._flight is not None:
            await asyncio.wait({self._flight}, timeout=self._patience)
        return {
            name: self._answers[name]
            for name in questions
            if name in self._answers and 0 <= at - self._answers[name].at < BELIEVED_SECONDS
        }

    def _is_due(self, questions: Mapping[Name, Question], at: float) -> bool:
        if not questions.keys() <= self._asked.keys():
            return True
        return not 0 <= at - self._asked_at < PAUSE_SECONDS

    async def _ask(self, run_id: str, questions: Mapping[Name, Question], at: float) -> None:
        try:
            readings = await self._sources.ask_prometheus_long(run_id, list(questions.values()), at)
            self._answers = dict(zip(questions, readings, strict=True))
        except MetricsUnavailableError as error:
            logger.info("Prometheus does not tell long windows of run %s: %s", run_id, error)
        finally:
            self._flight = None
