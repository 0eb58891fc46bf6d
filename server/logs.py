"""Log lines with the ids they belong to: one bounded line each, on the console or as JSON."""

from __future__ import annotations

import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import orjson

from server.scrubbing import CONTROLS

if TYPE_CHECKING:
    from server.settings import Settings

MAX_LINE = 2048
MAX_TRACEBACK = 16_384

request_id_var: ContextVar[str] = ContextVar("request_id", default="")
run_id_var: ContextVar[str] = ContextVar("run_id", default="")
deployment_id_var: ContextVar[str] = ContextVar("deployment_id", default="")
trace_id_var: ContextVar[str] = ContextVar("trace_id", default="")

_IDS = {
    "requestId": request_id_var,
    "runId": run_id_var,
    "deploymentId": deployment_id_var,
    "traceId": trace_id_var,
}

# Of a token: none is ever logged on purpose, but callers may put one where it does not belong.
# Its id is no secret and as long as this asks for, so one that was cut shows nothing either.
_SECRET = re.compile(r"psk_[A-Za-z0-9_-]{17,}")
_CONTROL = re.compile(rf"[\t{CONTROLS}]")


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all log records to ``stream`` (stderr) in the form and from the level of the settings."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else ConsoleFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for noisy in ("aiohttp.access", "aiosqlite", "alembic", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def statement(settings: Settings, name: str, text: str, level: int = logging.INFO) -> str:
    """Return what is to be said whatever the level of the settings, in their form.

    On the console that is ``text`` as it is, of any number of lines.
    """
    if settings.log_format != "json":
        return text
    said = " | ".join(" ".join(line.split()) for line in text.splitlines())
    record = logging.LogRecord(name, level, "", 0, "%s", (said,), None)
    return JsonFormatter().format(record) + "\n"


def one_line(text: str, length: int = MAX_LINE) -> str:
    """Return ``text`` on one line: control characters escaped, cut after ``length`` characters."""
    if len(text) > length:
        text = text[:length] + "…"
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def redacted(text: str) -> str:
    """Return ``text`` without the secrets of tokens."""
    return _SECRET.sub("psk_…", text) if "psk_" in text else text


class ConsoleFormatter(logging.Formatter):
    """One readable line a record; a traceback follows indented, so that no text can pose as a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text, without secrets."""
        return redacted(self._written(record))

    def _written(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        ids = "".join(f" {name}={value}" for name, value in _ids().items())
        line = (
            f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z "
            f"{record.levelname.lower():<7} {record.name}: {one_line(record.getMessage())}{ids}"
        )
        trace = self._trace(record)
        return line + "".join(f"\n  | {one_line(part)}" for part in trace.splitlines())

    def _trace(self, record: logging.LogRecord) -> str:
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return redacted(trace)[-MAX_TRACEBACK:]


class JsonFormatter(ConsoleFormatter):
    """One JSON object a record; ``extra={"fields": {...}}`` adds to it."""

    def _written(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": one_line(record.getMessage()),
            **_ids(),
            **{key: _bounded(value) for key, value in getattr(record, "fields", {}).items()},
        }
        trace = self._trace(record)
        if trace:
            entry["traceback"] = trace.encode("utf-8", "replace").decode()
        return orjson.dumps(entry, option=orjson.OPT_UTC_Z, default=str).decode()


def _bounded(value: object) -> object:
    return one_line(value) if isinstance(value, str) else value


def _ids() -> dict[str, str]:
    # A deployment's id has the name in it that its owner gave the model.
    return {name: one_line(value, 200) for name, var in _IDS.items() if (value := var.get())}
