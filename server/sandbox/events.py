"""What child processes say, read by one checked reader: no word of theirs is trusted."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import TYPE_CHECKING, Any

from server.scrubbing import scrubbed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.records import Params
    from server.sandbox.child import Child

_CODE = re.compile(r"[a-z][a-z0-9_]{1,63}")
_TEXT_CHARS = 300
_LAST_LINES = 5
_WORD = re.compile(r"\w")
_PARAMS = 30
_ITEMS = 100
_DEPTH = 12
# A passport is the only long thing that a child has to say.
_SHORT_CHARS = 4096
_LONG_LINES = 4
_PARTS = 200_000
# The answers to people are written by an encoder that knows no larger ones.
_LEAST, _MOST = -(2**63), 2**64 - 1
# "warnings" is the service's own: in it lie messages, rendered inside of a message.
_NO_PARAMS = ("evidence", "permanent", "refused", "warnings")


def read_event(said: str | bytes) -> Params:
    """Return the JSON object that a child wrote, made of what every encoder can write again.

    Raises:
        ValueError: it is none.
    """
    try:
        event = _sound(json.loads(said), _DEPTH)
    except RecursionError:
        raise ValueError("depth") from None
    if not isinstance(event, dict):
        raise ValueError("object")  # noqa: TRY004 - what a child says wrongly is one kind of error
    return event


class Events:
    """The events of one child, as far as they can be read.

    Of long lines only a few are, beside everything else: reading what is made for it would keep the
    service from its other callers for seconds.
    """

    def __init__(self, child: Child) -> None:
        self._child = child
        self._long_lines = 0

    async def next(self) -> Params | None:
        """Return the next one, or None at the end of what the child says."""
        while (line := await self._child.line()) is not None:
            if len(line) > _SHORT_CHARS:
                self._long_lines += 1
                if self._long_lines > _LONG_LINES:
                    continue
            try:
                return await read_line(line)
            except ValueError:
                continue
        return None


async def read_line(line: str) -> Params:
    """Read an event as ``read_event`` does, a long one in a thread.

    Raises:
        ValueError: it is none, or has far more parts than any of ours.
    """
    if len(line) <= _SHORT_CHARS:
        return read_event(line)
    if sum(line.count(mark) for mark in ",[{") > _PARTS:
        raise ValueError("parts")
    return await asyncio.to_thread(read_event, line)


def read_text(said: Any) -> Params:
    """Return a message that a child sent: a code and plain parameters.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(said, dict):
        raise ValueError("message")  # noqa: TRY004
    code, params = said.get("code"), said.get("params") or {}
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        raise ValueError("code")
    if not isinstance(params, dict) or len(params) > _PARAMS:
        raise ValueError("params")
    return {
        "code": code,
        "params": {
            _text(name): _plain(value) for name, value in params.items() if name not in _NO_PARAMS
        },
    }


def read_failure(said: Any) -> tuple[str, str, Params]:
    """Return code, evidence and parameters of a failure that a child named.

    Raises:
        ValueError: it named none.
    """
    text = read_text(said)
    params = said.get("params") or {}
    evidence = params.get("evidence") or said.get("evidence") or ""
    return text["code"], _text(evidence), text["params"]


def last_words(log: Iterable[str]) -> str:
    """Return the last lines of what a child wrote to its log, as many as evidence has room for.

    They stand in their order with bars between them, without paths; the last one is always there.
    """
    words: list[str] = []
    for line in reversed([line for line in log if _WORD.search(line)]):
        words.insert(0, scrubbed(line))
        if len(words) == _LAST_LINES or len(" | ".join(words)) > _TEXT_CHARS:
            break
    if len(words) > 1 and len(" | ".join(words)) > _TEXT_CHARS:
        del words[0]
    return " | ".join(words)


def _sound(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not _LEAST <= value <= _MOST:
        raise ValueError("number")
    if isinstance(value, dict | list) and not depth:
        raise ValueError("depth")
    if isinstance(value, list):
        return [_sound(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {_sound(name, 0): _sound(item, depth - 1) for name, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_scalar(item) for item in value[:_ITEMS]]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _text(value)


def _text(value: Any) -> str:
    return str(value)[:_TEXT_CHARS]
