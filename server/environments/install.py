"""Installs a lock into a folder; the interpreter inside is never run while it is built.

What a stranger's wheel brings (a ``.pth`` file, for one) runs as soon as the environment's own
interpreter starts. That happens only in the sandbox: here the interpreter that it is made of
does all the work.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.cores import usable_cores
from server.environments.failures import is_offline, named_failure, says_full
from server.environments.uv import Finished, Moment, run
from server.errors import StepFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from server.environments.lock import Lock

    Progress = Callable[[str, dict[str, Any]], None]

logger = logging.getLogger(__name__)

_DOWNLOADING = re.compile(r"Downloading (\S+) \(([\d.]+)\s*([KMG]i?B)\)")
_DOWNLOADED = re.compile(r"\s*Downloaded (\S+)")
_MEBIBYTE = 1024**2
_UNITS = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
_MOST_COMPILERS = 4


def site_packages(root: Path, lock: Lock) -> Path:
    """Return where the packages of an environment lie."""
    return root / "lib" / f"python{lock.python.minor}" / "site-packages"


@dataclass(slots=True)
class _Downloads:
    """What is being downloaded: package -> size in mebibytes."""

    running: dict[str, float] = field(default_factory=dict)
    done: int = 0

    def note(self, line: str) -> None:
        started = _DOWNLOADING.match(line)
        if started is not None:
            unit = _UNITS.get(started[3], 1.0)
            self.running[started[1]] = float(started[2]) * unit
        finished = _DOWNLOADED.match(line)
        if finished is not None and self.running.pop(finished[1], None) is not None:
            self.done += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Installer:
    """How packages get into an environment; all commands end with the service."""

    uv: Sequence[str]
    common: Sequence[str]
    sources: Sequence[str]
    environ: Mapping[str, str]
    scratch: Path
    check_room: Callable[[], None]

    async def install(self, lock: Lock, root: Path, say: Progress) -> None:
        """Make the environment of ``lock`` in ``root``, which must not exist yet.

        Raises:
            StepFailedError: a package could not be had, or the disk is full.
            OSError: a program cannot be started, a file cannot be written.
        """
        began = time.monotonic()
        site = site_packages(root, lock)
        await self._make(lock, root)
        await self._fill(lock, site, say, began)
        await self._compile(lock, site, say, began)

    async def _make(self, lock: Lock, root: Path) -> None:
        command = [*self.uv, "venv", "--quiet", "--offline", "--no-project", "--no-config"]
        command += ["--no-python-downloads", "--python", lock.python.path, str(root)]
        index = self.common.index("--cache-dir")
        command += self.common[index : index + 2]
        finished = await run(command, folder=self.scratch, environ=self.environ)
        if finished.exit_code:
            raise named_failure(finished.output, ())

    async def _fill(self, lock: Lock, site: Path, say: Progress, began: float) -> None:
        pins = self.scratch / "lock.txt"
        await asyncio.to_thread(pins.write_text, lock.text, encoding="utf-8")
        command = [*self.uv, "pip", "install", "--no-deps", "--link-mode", "hardlink"]
        command += ["--python", lock.python.path, "--target", str(site), "--no-sources"]
        command += [*self.common, *self.sources, "--requirements", str(pins)]
        downloads = _Downloads()

        async def watch(moment: Moment) -> None:
            if moment.line is not None:
                downloads.note(moment.line)
            else:
                # Once a second: it ends before the room is used up that others need.
                await asyncio.to_thread(self.check_room)
            self._tell(lock, downloads, moment, say, began)

        # Without network first: all of it may be in the cache, and then nothing is asked.
        finished = await self._run([*command, "--offline"], watch)
        if finished.exit_code and is_offline(finished.output):
            finished = await self._run(command, watch)
        if finished.exit_code:
            logger.info("uv could not install: %s", finished.output)
            raise named_failure(finished.output, tuple(lock.packages))

    async def _run(self, command: Sequence[str], watch: Any) -> Finished:
        return await run(command, folder=self.scratch, environ=self.environ, watch=watch)

    @staticmethod
    def _tell(
        lock: Lock, downloads: _Downloads, moment: Moment, say: Progress, began: float
    ) -> None:
        params = {
            "packages": len(lock.packages),
            "megabytes": moment.written_bytes // _MEBIBYTE,
            "seconds": round(time.monotonic() - began),
        }
        if downloads.running:
            names = sorted(downloads.running, key=lambda name: -downloads.running[name])
            size = round(sum(downloads.running.values()))
            say("environment_downloading", {**params, "names": names[:3], "size": size})
        else:
            say("environment_installing", params)

    async def _compile(self, lock: Lock, site: Path, say: Progress, began: float) -> None:
        """Compile the modules: model processes see this folder read-only and could not.

        Several processes side by side instead of a pool: a pool's workers would outlive a
        killed service.
        """

        async def watch(_: Moment) -> None:
            seconds = round(time.monotonic() - began)
            say("environment_compiling", {"packages": len(lock.packages), "seconds": seconds})

        shares = await asyncio.to_thread(_shares, site, min(_MOST_COMPILERS, usable_cores()))
        command = [lock.python.path, "-I", "-S", "-m", "compileall", "-q"]
        try:
            async with asyncio.TaskGroup() as group:
                running = [
                    group.create_task(self._run([*command, *share], watch)) for share in shares
                ]
        except ExceptionGroup as failures:
            # Each of them has the same cause, and who waits knows it by its own name only.
            raise failures.exceptions[0] from failures
        for finished in running:
            # Its exit code says that some file is no valid Python; packages ship such.
            if says_full(finished.result().output):
                raise StepFailedError("disk_full")


def _shares(site: Path, count: int) -> list[list[str]]:
    """Divide the packages into ``count`` lists of about the same size."""
    sizes: dict[str, int] = {}
    for entry in site.iterdir():
        if entry.is_dir() and not entry.name.endswith(".dist-info"):
            files = entry.rglob("*.py")
            sizes[str(entry)] = sum(file.stat().st_size for file in files if file.is_file())
        elif entry.suffix == ".py":
            sizes[str(entry)] = entry.stat().st_size
    shares: list[tuple[int, list[str]]] = [(0, []) for _ in range(count)]
    for path in sorted((path for path in sizes if sizes[path]), key=lambda path: -sizes[path]):
        index = min(range(count), key=lambda number: shares[number][0])
        total, paths = shares[index]
        shares[index] = (total + sizes[path], [*paths, path])
    return [paths for _, paths in shares if paths]
