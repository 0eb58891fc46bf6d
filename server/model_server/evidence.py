"""Turns an exception into the one line that shows its cause, without paths."""

from __future__ import annotations

import re

LIMIT = 300
"""Longest line that is kept, in characters."""

_PATH = re.compile(r"(?<![\w/.])(?:[A-Za-z]:\\|/)[^\s'\":,;()<>|]*")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


def scrub(text: str) -> str:
    """Remove paths, addresses and control characters, and cut to ``LIMIT`` characters."""
    text = _ADDRESS.sub("0x…", _PATH.sub("…", _CONTROL.sub(" ", text)))
    text = " ".join(text.split())
    return text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"


def one_line(error: BaseException) -> str:
    """Say what an exception says, in one scrubbed line.

    A TorchScript error carries the trace of the model's code first and its cause last; all
    others say the cause first.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    chosen = lines[0]
    if "TorchScript" in chosen or chosen.startswith("Traceback"):
        chosen = lines[-1]
    return scrub(f"{type(error).__name__}: {chosen}")
