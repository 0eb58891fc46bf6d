"""How a child process of a step ended: with a report, a named failure, or without a word."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from server.errors import StepFailedError
from server.pipeline.report import InspectionReport, read_report
from server.sandbox.events import last_words, read_failure, read_line

if TYPE_CHECKING:
    from server.records import Params
    from server.sandbox.child import Child


_UNEXPECTED = frozenset({"model_proof_failed"})


async def last_event(child: Child) -> Params:
    """Return the last thing that a child said, once it has ended.

    Raises:
        StepFailedError: it said nothing that can be read.
    """
    last = None
    while (line := await child.line()) is not None:
        last = line
    code = await child.wait()
    try:
        return await read_line(last or "")
    except ValueError:
        raise abrupt_end(code, last_words(child.log)) from None


def report_in(event: Params) -> InspectionReport:
    """Return what an inspection has found.

    Raises:
        StepFailedError: it failed.
    """
    if event.get("ok") is not True:
        raise named_failure(event)
    return read_report(event)


def named_failure(event: Params) -> StepFailedError:
    """Return the failure that a child named."""
    try:
        code, evidence, params = read_failure(event)
    except ValueError as error:
        return StepFailedError("child_ended", reason="no report", evidence=str(error))
    return StepFailedError(code, evidence=evidence, **params)


async def failure_of(child: Child, event: Params) -> StepFailedError:
    """Return the failure that a child named; of one that it did not expect, its last words."""
    failure = named_failure(event)
    if failure.code not in _UNEXPECTED:
        return failure
    await child.wait()
    words = last_words(child.log) or failure.evidence
    return StepFailedError(failure.code, evidence=words, **failure.params)


def abrupt_end(code: int, evidence: str) -> StepFailedError:
    """Return why a child ended without a word, from its exit code and its last lines."""
    if code in {-9, 137} or "MemoryError" in evidence or "bad_alloc" in evidence:
        return StepFailedError("out_of_memory", evidence=evidence)
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    return StepFailedError("child_ended", reason=reason, evidence=evidence)


def seconds_in(event: Params) -> float:
    """Return the seconds that a child says something took.

    Raises:
        StepFailedError: ``step_crashed``.
    """
    seconds = event.get("seconds")
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise StepFailedError("step_crashed", evidence="seconds")
    return round(float(seconds), 2)
