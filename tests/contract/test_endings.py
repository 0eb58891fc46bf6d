"""How children of a step end without having done their work, and what is kept of their log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from server.errors import StepFailedError
from server.pipeline.endings import abrupt_end, failure_of, last_event, report_in
from server.sandbox.events import last_words
from server.sandbox.launch import Level, Sandbox
from tests.support.confined import script

if TYPE_CHECKING:
    from pathlib import Path

    from server.sandbox.child import Child

TRACEBACK = "raise KeyError('/srv/secret/x')"


async def started(folder: Path, code: str) -> Child:
    return await Sandbox(level=Level.LIMITS).start(script(folder, code))


@pytest.mark.parametrize(
    ("code", "failure", "reason"),
    [
        (TRACEBACK, "child_ended", "exit code 1"),
        ("import os; os._exit(3)", "child_ended", "exit code 3"),
        ("import os; os.kill(os.getpid(), 11)", "child_ended", "signal 11"),
        ("import os; os.kill(os.getpid(), 9)", "out_of_memory", None),
        ("raise MemoryError", "out_of_memory", None),
    ],
)
async def test_a_child_that_ends_without_a_word_is_a_named_failure(
    tmp_path: Path, code: str, failure: str, reason: str | None
) -> None:
    with pytest.raises(StepFailedError) as caught:
        await last_event(await started(tmp_path, code))
    assert (caught.value.code, caught.value.params.get("reason")) == (failure, reason)


async def test_the_last_lines_of_its_log_are_the_evidence(tmp_path: Path) -> None:
    child = await started(tmp_path, TRACEBACK)
    failure = abrupt_end(await child.wait(), last_words(child.log))
    assert failure.evidence.endswith("KeyError: '…'")
    assert "in main" in failure.evidence
    assert str(tmp_path) not in failure.evidence


async def test_a_proof_that_broke_off_shows_where(tmp_path: Path) -> None:
    child = await started(tmp_path, TRACEBACK)
    event: dict[str, Any] = {"code": "model_proof_failed", "evidence": "KeyError: 1"}
    shown = await failure_of(child, event)
    assert shown.code == "model_proof_failed"
    assert "in main" in shown.evidence
    named = await failure_of(child, {"code": "sklearn_not_fitted", "params": {"name": "SVC"}})
    assert (named.code, named.params, named.evidence) == ("sklearn_not_fitted", {"name": "SVC"}, "")


def test_a_report_that_names_no_failure_is_one() -> None:
    with pytest.raises(StepFailedError) as caught:
        report_in({"ok": False, "code": "<b>"})
    assert (caught.value.code, caught.value.evidence) == ("child_ended", "code")
