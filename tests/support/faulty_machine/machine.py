"""A machine whose disk, processes and clock fail for one service, when a test says so."""

from __future__ import annotations

import errno
import mmap
import struct
import subprocess
from enum import IntFlag
from pathlib import Path

from tests.support.needs import need

SOURCE = Path(__file__).with_name("machine.c")
_FORMAT = "qqqiIii488s"
_KILL, _KILL_TORN = -1, -2


class Calls(IntFlag):
    """Kinds of calls that can fail; files are those below the data folder, as they are named."""

    OPEN = 1
    WRITE = 2
    SYNC = 4
    RENAME = 8
    LINK = 16
    UNLINK = 32
    MKDIR = 64
    TRUNCATE = 128
    SPAWN = 256

    FILES = OPEN | WRITE | SYNC | RENAME | LINK | UNLINK | MKDIR | TRUNCATE
    GROWING = OPEN | WRITE | RENAME | LINK | MKDIR | TRUNCATE
    """What a full disk refuses."""


class FaultyMachine:
    """Controls the library in one process; several services may be started on it in turn."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        """Compile the library into ``folder``; skips the test where there is no compiler."""
        folder.mkdir(parents=True, exist_ok=True)
        self._library = folder / "machine.so"
        compiler = need("gcc", "gcc libc6-dev")
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*command, "-o", self._library, SOURCE, "-ldl"], check=True)
        self._file = folder / "control"
        self._file.write_bytes(bytes(struct.calcsize(_FORMAT)))
        with self._file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 0)
        self._prefix = f"{data_dir}/".encode()
        self._offset_ns = 0
        self.heal()

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which a program runs on this machine."""
        return {"LD_PRELOAD": str(self._library), "FAULTY_MACHINE": str(self._file)}

    def heal(self) -> None:
        """Let everything work; the clock stays as it was put."""
        self._set()

    def fail(self, calls: Calls, code: int, *, nth: int = 1, lasting: bool = False) -> None:
        """Let the ``nth`` call from now on end in an error, and every one after it if ``lasting``."""
        assert code in errno.errorcode
        self._set(left=nth, action=code, kinds=calls, lasting=lasting)

    def kill(self, calls: Calls, *, nth: int = 1, torn: bool = False) -> None:
        """Let the process be killed right before the ``nth`` call, or in the middle of it."""
        self._set(left=nth, action=_KILL_TORN if torn else _KILL, kinds=calls)

    def count(self, calls: Calls) -> None:
        """Only count these calls from now on."""
        self._set(kinds=calls)

    @property
    def seen(self) -> int:
        """How many calls matched since the machine was last told something."""
        return int(struct.unpack(_FORMAT, self._map[:])[2])

    def put_clock(self, seconds: float) -> None:
        """Put the wall clock forward, or back; it adds up."""
        self._offset_ns += round(seconds * 1e9)
        self._map[0:8] = struct.pack("q", self._offset_ns)

    @property
    def clock_offset(self) -> float:
        """By how many seconds the clock is ahead."""
        return self._offset_ns / 1e9

    def _set(
        self, *, left: int = 0, action: int = 0, kinds: int = 0, lasting: bool = False
    ) -> None:
        # The kinds are written last: until then everything passes.
        self._map[28:32] = struct.pack("I", 0)
        filled = struct.pack(
            _FORMAT,
            self._offset_ns,
            left,
            0,
            action,
            0,
            int(lasting),
            len(self._prefix),
            self._prefix,
        )
        self._map[:] = filled
        self._map[28:32] = struct.pack("I", int(kinds))

    def close(self) -> None:
        """Let go of the shared memory."""
        self._map.close()
