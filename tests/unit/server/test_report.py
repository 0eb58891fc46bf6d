"""What an inspection reports, and what is noted of the interpreter that its model gets."""

from __future__ import annotations

from typing import Any

import pytest

from server.environments.pythons import Python
from server.errors import StepFailedError
from server.pipeline.report import other_python, read_report


def test_a_python_of_another_minor_version_is_told() -> None:
    used = Python(path="/usr/bin/python3", version="3.11.2", platform="any")
    assert other_python("3.11.9", used) == other_python("", used) == []
    [warning] = other_python("3.10.4", used)
    assert warning == {"code": "python_differs", "params": {"wanted": "3.10.4", "found": "3.11.2"}}


@pytest.mark.parametrize("said", [3, ">=", ["3"], "x" * 200])
def test_a_range_that_the_inspection_would_not_report_is_refused(said: Any) -> None:
    with pytest.raises(StepFailedError) as caught:
        read_report(
            {"kind": "onnx", "format": "onnx", "file": "model.onnx", "requires_python": said}
        )
    assert caught.value.code == "inspection_failed"
