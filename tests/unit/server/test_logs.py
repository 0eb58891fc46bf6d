from __future__ import annotations

import io
import json
import logging
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest

from server.logs import (
    configure_logs,
    deployment_id_var,
    one_line,
    request_id_var,
    run_id_var,
    statement,
    trace_id_var,
)
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
    text = written(Settings(), "name %s", "a\r\nb\x1b[31m\u2028c\x85d\u202ee")
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(text.splitlines()) == 1


def test_a_long_line_is_cut() -> None:
    assert len(written(Settings(), "x" * 100_000)) < 2300
    assert len(one_line("x" * 100_000, 10)) == 11


def test_ids_of_what_a_line_belongs_to_stand_in_it() -> None:
    def both() -> tuple[str, dict[str, Any]]:
        request_id_var.set("r-1")
        run_id_var.set("abc")
        deployment_id_var.set("prod/iris\n/3")
        trace_id_var.set("4bf9")
        return (
            written(Settings(), "hello"),
            json.loads(written(Settings(log_format="json"), "hello")),
        )

    line, entry = copy_context().run(both)
    ids = "requestId=r-1 runId=abc deploymentId=prod/iris\\x0a/3 traceId=4bf9"
    assert line.endswith(f"hello {ids}\n")
    assert (entry["requestId"], entry["runId"], entry["traceId"]) == ("r-1", "abc", "4bf9")
    assert entry["deploymentId"] == "prod/iris\\x0a/3"
    assert entry["message"] == "hello"
    assert entry["level"] == "warning"
    assert entry["time"].endswith("Z")


def test_what_can_be_counted_stands_by_itself_in_json() -> None:
    fields = {"fields": {"status": 404, "path": "/a\nb", "client": None}}

    entry = json.loads(written(Settings(log_format="json"), "GET", extra=fields))
    assert (entry["message"], entry["status"], entry["client"]) == ("GET", 404, None)
    assert entry["path"] == "/a\\x0ab"
    assert "404" not in written(Settings(), "GET", extra=fields)


def test_what_is_said_whatever_the_level_is_of_the_form_of_the_log() -> None:
    text = "ready on http://localhost\n  data   /srv\n"
    said = statement(Settings(log_format="json", log_level="error"), "server.cli", text)

    assert statement(Settings(), "server.cli", text) == text
    assert said.count("\n") == 1
    entry = json.loads(said)
    assert entry["message"] == "ready on http://localhost | data /srv"
    assert (entry["level"], entry["logger"]) == ("info", "server.cli")


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


SECRET = "c2VjcmV0" + "x" * 35
TOKEN = f"psk_0123456789abcdef_{SECRET}"


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_secret_of_a_token_is_ever_written(form: str) -> None:
    settings = Settings(log_format=form)
    request = request_id_var.set(TOKEN)
    try:
        raise ValueError(f"bad {TOKEN}" + "x" * 100_000)
    except ValueError as error:
        texts = [
            written(settings, "GET /runs?token=%s 401", TOKEN),
            written(settings, "%s", "x" * 1970 + TOKEN),
            written(settings, "failed", exc_info=error),
        ]
    finally:
        request_id_var.reset(request)
    for text in texts:
        assert "c2Vj" not in text
        assert "psk_…" in text
