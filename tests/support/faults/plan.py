"""What is to happen at a point of the service: written by a test, read by the starter."""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from server.faults import Point

KILL = "kill"


class Plan:
    """One file that says what happens when a point is reached for the n-th time, once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counting = threading.Lock()
        self._counted = ("", 0)

    def arm(self, point: Point, nth: int = 1, act: str = KILL) -> None:
        """Let the process be killed, or get an OSError named by ``act``, there."""
        self.disarm()
        draft = self._path.with_suffix(".draft")
        draft.write_text(
            json.dumps({"id": secrets.token_hex(8), "point": point, "nth": nth, "act": act})
        )
        draft.replace(self._path)

    def disarm(self) -> None:
        """Let nothing happen any more."""
        self._path.unlink(missing_ok=True)

    @property
    def is_armed(self) -> bool:
        """Whether it has not come to it yet."""
        return self._path.exists()

    def reached(self, point: Point) -> None:
        """Do what the plan says; called in the service, from any thread."""
        if not self._path.exists():
            # Asked without opening anything: there may be no open files left.
            return
        try:
            with self._path.open() as file:
                planned = json.load(file)
        except FileNotFoundError:
            return
        if planned["point"] != point:
            return
        with self._counting:
            plan, count = self._counted
            count = count + 1 if plan == planned["id"] else 1
            self._counted = (planned["id"], count)
        if count < planned["nth"]:
            return
        self.disarm()
        if planned["act"] == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, planned["act"])
        raise OSError(code, os.strerror(code))
