"""Model environments: locked, built once per lock, shared by digest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uv import find_uv_bin

from server.environments.failures import is_offline, missing_packages, named_failure
from server.environments.folders import COMPLETE, Folders, remove, touch, try_lock
from server.environments.install import Installer, site_packages
from server.environments.lock import (
    Lock,
    LockCache,
    cpu_builds,
    lock_of,
    refuse_cuda_on_cpu,
    source_options,
    write_whole,
)
from server.environments.package_cache import PackageCache, stored_bytes
from server.environments.pythons import Python, found_pythons, own_python
from server.environments.sharing import SharedWork
from server.environments.uv import Finished, child_environment, run
from server.errors import StepFailedError
from server.faults import Point, Reached, nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from server.environments.plan import EnvironmentPlan
    from server.settings import Settings

    Progress = Callable[[str, dict[str, Any]], None]

logger = logging.getLogger(__name__)

MODEL_SERVER_REQUIREMENTS = Path(__file__).parents[1] / "model_server" / "requirements.in"

_FOLDER_CHARS = 32
_WAIT_SECONDS = 0.2


def folder_name(digest: str) -> str:
    """Return the name of the folder of a lock's environment; empty for no digest."""
    return digest[:_FOLDER_CHARS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A built environment: its folder, its interpreter, where its packages lie, its lock."""

    root: Path
    python: Path
    site: Path
    lock: Lock

    @property
    def digest(self) -> str:
        """Digest of its lock."""
        return self.lock.digest


class Environments:
    """Locks and builds the environments of models below ``root``.

    A folder counts as an environment only with its ``COMPLETE`` marker, which is written last;
    whatever a killed service left behind is swept. Folders are shared by digest, files between
    them by hard links. ``cache`` is uv's, by default below ``root``. ``may_use`` tells whether
    model processes can run an interpreter that is not the service's own.
    """

    def __init__(
        self,
        settings: Settings,
        root: Path,
        *,
        cache: Path | None = None,
        reached: Reached = nothing,
        may_use: Callable[[Path], bool] = lambda _: True,
    ) -> None:
        self._settings = settings
        self._may_use = may_use
        self._reached = reached
        self._folders = Folders(root.absolute())
        self._cache = (cache or self._folders.root / ".uv").absolute()
        self._locks = LockCache(self._folders.locks)
        self._work = SharedWork(settings.environment_seconds)
        # Names of folders that somebody is about to use, with how many do.
        self._wanted: Counter[str] = Counter()
        self._pythons: tuple[Python, ...] = ()
        self._opened = False

    async def open(self) -> None:
        """Make the folders and sweep what a killed service left behind; again is harmless."""
        if not self._opened:
            await asyncio.to_thread(self._folders.open)
            await asyncio.to_thread(self._locks.open)
            await asyncio.to_thread(self._cache.mkdir, parents=True, exist_ok=True)
            self._opened = True

    async def close(self) -> None:
        """End all work that is under way."""
        await self._work.close()

    async def pythons(self) -> tuple[Python, ...]:
        """Return the interpreters that environments are made of, the service's own first."""
        await self.open()
        if not self._pythons:
            self._pythons = await found_pythons(
                self._settings.pythons,
                self._folders.temporary,
                self._child_environment(),
                self._may_use,
            )
        return self._pythons

    async def known(self, plan: EnvironmentPlan, python: Python) -> Lock | None:
        """Return the lock of a plan if it needs no resolver."""
        return await asyncio.to_thread(self._known, plan, python)

    def _known(self, plan: EnvironmentPlan, python: Python) -> Lock | None:
        key = self._key(plan, _base_requirements(), python)
        return self._locks.read(key, python, is_pinned=plan.is_pinned)

    def _key(self, plan: EnvironmentPlan, base: tuple[str, ...], python: Python) -> str:
        sources = source_options(self._settings, plan.device)
        return self._locks.key(plan, base, sources, python)

    async def lock(
        self,
        plan: EnvironmentPlan,
        progress: Progress | None = None,
        *,
        python: Python | None = None,
    ) -> Lock:
        """Return the exact packages of a plan; one that was seen before needs no resolver.

        They are for the service's own interpreter where no other is given.

        Raises:
            StepFailedError: ``dependency_conflict``, ``package_unavailable``,
                ``packages_offline``, ``cuda_wheels_on_cpu``, ``environment_timed_out``,
                ``disk_full`` or ``environment_failed``.
        """
        await self.open()
        chosen = python or own_python()
        known = await self.known(plan, chosen)
        if known is not None:
            return known
        base = await asyncio.to_thread(_base_requirements)
        key = self._key(plan, base, chosen)
        found: Lock = await self._work.do(
            f"lock {key}", progress, lambda say: self._resolve(plan, base, key, chosen, say)
        )
        return found

    async def build(self, lock: Lock, progress: Progress) -> Environment:
        """Return the environment of a lock, built if it is not there yet.

        ``progress`` is called with the code and the parameters of a sentence, from once a
        second to more often. Callers of the same lock wait for one build, which goes on when a
        caller is cancelled.

        Raises:
            StepFailedError: ``packages_offline``, ``package_unavailable``,
                ``cuda_wheels_on_cpu``, ``environment_timed_out``, ``disk_full`` or
                ``environment_failed``.
        """
        async with self.using(lock, progress) as environment:
            return environment

    @contextlib.asynccontextmanager
    async def using(self, lock: Lock, progress: Progress) -> AsyncIterator[Environment]:
        """As :meth:`build`; while the block lasts it is not collected."""
        refuse_cuda_on_cpu(lock)
        await self.open()
        environment = self._environment(lock)
        name = environment.root.name
        self._wanted[name] += 1
        try:
            if await asyncio.to_thread(_is_used, environment):
                progress("environment_cached", {"packages": len(lock.packages)})
            else:
                await self._work.do(
                    f"build {lock.digest}", progress, lambda say: self._build(lock, say)
                )
            yield environment
        finally:
            self._wanted[name] -= 1

    @property
    def is_building(self) -> bool:
        """Whether the installer is at work."""
        return self._work.is_running

    @property
    def packages(self) -> PackageCache:
        """The installer's cache."""
        return PackageCache(self._cache, self._child_environment())

    async def stored_bytes(self) -> int:
        """Add up what environments and packages take, each file once."""
        return await asyncio.to_thread(stored_bytes, self._folders.root)

    async def collect(self, in_use: Callable[[], Collection[str]], kept_seconds: float) -> int:
        """Remove what nobody has used for so long; return how many environments that were.

        ``in_use`` returns the names of the folders in use at that moment, by whatever part of the
        service. What a killed service was about to remove, the next one does.
        """
        await self.open()
        removed = 0

        def is_wanted(name: str) -> bool:
            return bool(self._wanted[name]) or name in in_use()

        for name in await asyncio.to_thread(self._folders.idle, in_use(), kept_seconds):
            if doomed := self._folders.take_away(name, is_wanted):
                logger.info("removing the model environment %s, which nobody uses", name)
                await asyncio.to_thread(remove, doomed)
                removed += 1
        # No work takes longer than that.
        await asyncio.to_thread(self._folders.sweep, self._settings.environment_seconds)
        return removed

    def _environment(self, lock: Lock) -> Environment:
        root = self._folders.root / folder_name(lock.digest)
        return Environment(
            root=root, python=root / "bin" / "python", site=site_packages(root, lock), lock=lock
        )

    async def _resolve(
        self, plan: EnvironmentPlan, base: tuple[str, ...], key: str, python: Python, say: Progress
    ) -> Lock:
        say("environment_resolving", {"packages": len(plan.requirements)})
        lines = (*base, *plan.requirements)
        finished = await self._compile(lines, (), plan.device, python)
        if finished.exit_code and is_offline(finished.output):
            lock = await asyncio.to_thread(
                self._locks.read, key, python, is_pinned=plan.is_pinned, stale=True
            )
            if lock is not None:
                return lock
            second = await self._compile(lines, ("--offline",), plan.device, python)
            # Failing that, the cache says which packages are missing; the index only says no.
            if not second.exit_code or missing_packages(second.output):
                finished = second
        lock = _lock_or_failure(finished, plan, python)
        excluded = cpu_builds(lock)
        if excluded:
            # The operator's wheels are for the CPU; the build for the GPU is the index's.
            finished = await self._compile((*lines, *excluded), (), plan.device, python)
            lock = _lock_or_failure(finished, plan, python)
        await asyncio.to_thread(self._locks.write, key, lock)
        return lock

    async def _compile(
        self, lines: tuple[str, ...], options: tuple[str, ...], device: str, python: Python
    ) -> Finished:
        async with self._scratch() as scratch:
            wanted, pins = scratch / "requirements.in", scratch / "requirements.txt"
            await asyncio.to_thread(wanted.write_text, "\n".join(lines) + "\n", encoding="utf-8")
            command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-annotate", "--no-header"]
            command += ["--no-sources", "--python", python.path, "--output-file", str(pins)]
            command += [*self._common(), *source_options(self._settings, device), *options]
            finished = await run(
                [*command, str(wanted)], folder=scratch, environ=self._child_environment()
            )
            if finished.exit_code:
                logger.info("uv could not lock: %s", finished.output)
                return finished
            return Finished(exit_code=0, output=await asyncio.to_thread(pins.read_text))

    async def _build(self, lock: Lock, say: Progress) -> None:
        environment = self._environment(lock)
        async with self._guard(lock, say):
            if await asyncio.to_thread(_is_complete, environment):
                return
            await asyncio.to_thread(remove, environment.root)
            await asyncio.to_thread(self._refuse_without_room)
            try:
                async with self._scratch() as scratch:
                    installer = Installer(
                        uv=[find_uv_bin()],
                        common=self._common(),
                        sources=source_options(self._settings, lock.device),
                        environ=self._child_environment(),
                        scratch=scratch,
                        check_room=self._refuse_without_room,
                    )
                    await installer.install(lock, environment.root, say)
                self._reached(Point.PREPARE_INSTALLED)
                marker = environment.root / COMPLETE
                await asyncio.to_thread(write_whole, marker, lock.text)
                self._reached(Point.PREPARE_MARKED)
            except BaseException:
                await asyncio.to_thread(remove, environment.root)
                raise

    def _refuse_without_room(self) -> None:
        """Raise StepFailedError if an environment may not take any more of the disk."""
        disk = shutil.disk_usage(self._folders.root)
        if disk.free < self._settings.kept_free(disk.total):
            raise StepFailedError("disk_full")

    def _common(self) -> list[str]:
        return [
            *("--no-config", "--only-binary", ":all:", "--cache-dir", str(self._cache)),
            *("--color", "never", "--no-progress", "--no-python-downloads"),
            *("--keyring-provider", "disabled"),
        ]

    def _child_environment(self) -> dict[str, str]:
        return child_environment(os.environ, self._folders.temporary)

    @contextlib.asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._folders.temporary))
        try:
            yield folder
        finally:
            await asyncio.to_thread(remove, folder)

    @contextlib.asynccontextmanager
    async def _guard(self, lock: Lock, say: Progress) -> AsyncIterator[None]:
        """Hold the lock file of an environment: another process may be building it."""
        path = self._folders.guards / folder_name(lock.digest)
        file = await asyncio.to_thread(path.open, "a")
        try:
            while not await asyncio.to_thread(try_lock, file.fileno()):
                say("environment_waiting", {"packages": len(lock.packages)})
                await asyncio.sleep(_WAIT_SECONDS)
            yield
        finally:
            # Closing gives the lock back; so does the end of the process, however it ends.
            file.close()


def _lock_or_failure(finished: Finished, plan: EnvironmentPlan, python: Python) -> Lock:
    if finished.exit_code:
        raise named_failure(finished.output, plan.requirements)
    return lock_of(finished.output, plan.device, python)


def _base_requirements() -> tuple[str, ...]:
    lines = MODEL_SERVER_REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _is_used(environment: Environment) -> bool:
    """Note that an environment is used, if it is whole."""
    if not _is_complete(environment):
        return False
    touch(environment.root)
    return True


def _is_complete(environment: Environment) -> bool:
    """Tell whether an environment is whole and its interpreter still there."""
    return (environment.root / COMPLETE).is_file() and environment.python.exists()
