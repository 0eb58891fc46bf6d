from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from server.logs import configure_logs, one_line, request_id_var, run_id_var
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def written(settings: Settings, *args: Any, **kwargs: Any) -> str:
    stream = io.StringIO()
    configure_logs(settings, stream)
    logging.getLogger("server.test").warning(*args, **kwargs)
    return stream.getvalue()


def test_a_user_cannot_write_a_second_line() -> None:
    text = written(Settings(), "name %s", "a\r\nb\x1b[31m\u2028c\x85d")
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert len(text.splitlines()) == 1


def test_a_long_line_is_cut() -> None:
    assert len(written(Settings(), "x" * 100_000)) < 2300
    assert len(one_line("x" * 100_000, 10)) == 11


def test_ids_of_request_and_run_stand_in_the_line() -> None:
    request = request_id_var.set("r-1")
    run = run_id_var.set("abc")
    try:
        assert written(Settings(), "hello").endswith("hello requestId=r-1 runId=abc\n")
        entry = json.loads(written(Settings(log_format="json"), "hello"))
    finally:
        request_id_var.reset(request)
        run_id_var.reset(run)
    assert entry["requestId"] == "r-1"
    assert entry["runId"] == "abc"
    assert entry["message"] == "hello"
    assert entry["level"] == "warning"
    assert entry["time"].endswith("Z")


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_cannot_pose_as_a_line(form: str) -> None:
    try:
        raise ValueError("first\n2026-01-01T00:00:00.000Z info    server: forged")
    except ValueError as error:
        text = written(Settings(log_format=form), "failed", exc_info=error)
    assert "forged" in text
    assert not [line for line in text.splitlines() if line.startswith("2026-01-01T")]


def test_the_level_of_the_settings_is_kept() -> None:
    assert written(Settings(log_level="error"), "hello") == ""
