"""Log lines with request and run ids: one bounded line each, on the console or as JSON."""

from __future__ import annotations

import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import orjson

if TYPE_CHECKING:
    from server.settings import Settings

MAX_LINE = 2048
MAX_TRACEBACK = 16_384

request_id_var: ContextVar[str] = ContextVar("request_id", default="")
run_id_var: ContextVar[str] = ContextVar("run_id", default="")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all log records to ``stream`` (stderr) in the form and from the level of the settings."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else ConsoleFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for noisy in ("aiohttp.access", "aiosqlite", "alembic", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def one_line(text: str, length: int = MAX_LINE) -> str:
    """Return ``text`` on one line: control characters escaped, cut after ``length`` characters."""
    if len(text) > length:
        text = text[:length] + "…"
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class ConsoleFormatter(logging.Formatter):
    """One readable line a record; a traceback follows indented, so that no text can pose as a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
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
        return trace[-MAX_TRACEBACK:]


class JsonFormatter(ConsoleFormatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": one_line(record.getMessage()),
            **_ids(),
        }
        trace = self._trace(record)
        if trace:
            entry["traceback"] = trace.encode("utf-8", "replace").decode()
        return orjson.dumps(entry, option=orjson.OPT_UTC_Z, default=str).decode()


def _ids() -> dict[str, str]:
    ids = {"requestId": request_id_var.get(), "runId": run_id_var.get()}
    return {name: value for name, value in ids.items() if value}
