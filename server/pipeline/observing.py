"""Measures the steps of preparations, writes them into the log and traces them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from server.logs import run_id_var
from server.states import Phase, Step

if TYPE_CHECKING:
    from metrics.service import ServiceInstruments
    from server.tracing import Tracing

logger = logging.getLogger(__name__)


class StepObserver:
    """Is told of every step that ended, in the context of its preparation."""

    def __init__(self, instruments: ServiceInstruments, tracing: Tracing | None = None) -> None:
        self._instruments = instruments
        self._tracing = tracing

    def __call__(self, step: Step, phase: Phase, seconds: float) -> None:
        """Take a step's outcome and how long it took."""
        self._instruments.step(step, phase, seconds)
        logger.info("step %s: %s after %.2f s", step, phase, seconds)
        if self._tracing is not None:
            self._tracing.past(
                f"step {step}",
                seconds,
                failed=phase is Phase.FAILED,
                attributes={"persephone.run_id": run_id_var.get()},
            )
