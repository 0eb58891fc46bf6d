"""Model environments: locked, built once per lock, shared by digest."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uv import find_uv_bin

from server.environments.failures import is_full, is_offline, missing_packages, named_failure
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
from server.environments.uv import Finished, child_environment, run
from server.errors import StepFailedError
from server.sandbox.launch import base_python

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from server.environments.plan import EnvironmentPlan
    from server.settings import Settings

    Progress = Callable[[str, dict[str, Any]], None]

logger = logging.getLogger(__name__)

MODEL_SERVER_REQUIREMENTS = Path(__file__).parents[1] / "model_server" / "requirements.in"

_COMPLETE = "COMPLETE"
_FOLDER_CHARS = 32
_WAIT_SECONDS = 0.2


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


@dataclass(slots=True)
class _Shared:
    """Work that several callers wait for."""

    task: asyncio.Task[Any]
    listeners: list[Progress] = field(default_factory=list)


class Environments:
    """Locks and builds the environments of models below ``root``.

    A folder counts as an environment only with its ``COMPLETE`` marker, which is written last;
    whatever a killed service left behind is swept. Folders are shared by digest, files between
    them by hard links. ``cache`` is uv's, by default below ``root``.
    """

    def __init__(self, settings: Settings, root: Path, *, cache: Path | None = None) -> None:
        self._settings = settings
        self._root = root.absolute()
        self._cache = (cache or self._root / ".uv").absolute()
        self._temporary = self._root / ".tmp"
        self._guards = self._root / ".guards"
        self._locks = LockCache(self._root / ".locks")
        self._shared: dict[str, _Shared] = {}
        self._opened = False

    async def open(self) -> None:
        """Make the folders and sweep what a killed service left behind; again is harmless."""
        if not self._opened:
            await asyncio.to_thread(self._open)
            self._opened = True

    async def close(self) -> None:
        """End all work that is under way."""
        tasks = [shared.task for shared in self._shared.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def lock(self, plan: EnvironmentPlan, progress: Progress | None = None) -> Lock:
        """Return the exact packages of a plan; one that was seen before needs no resolver.

        Raises:
            StepFailedError: ``dependency_conflict``, ``package_unavailable``,
                ``packages_offline``, ``cuda_wheels_on_cpu``, ``environment_timed_out``,
                ``disk_full`` or ``environment_failed``.
        """
        await self.open()
        base = await asyncio.to_thread(_base_requirements)
        sources = source_options(self._settings, plan.device)
        key = self._locks.key(plan, base, sources)
        known = await asyncio.to_thread(self._locks.read, key, is_pinned=plan.is_pinned)
        if known is not None:
            return known
        found: Lock = await self._share(
            f"lock {key}", progress, lambda say: self._resolve(plan, base, key, say)
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
        refuse_cuda_on_cpu(lock)
        await self.open()
        environment = self._environment(lock)
        if await asyncio.to_thread(_is_complete, environment):
            progress("environment_cached", {"packages": len(lock.packages)})
            return environment
        await self._share(f"build {lock.digest}", progress, lambda say: self._build(lock, say))
        return environment

    def _environment(self, lock: Lock) -> Environment:
        root = self._root / lock.digest[:_FOLDER_CHARS]
        return Environment(
            root=root, python=root / "bin" / "python", site=site_packages(root), lock=lock
        )

    async def _share(
        self,
        key: str,
        progress: Progress | None,
        work: Callable[[Progress], Coroutine[Any, Any, Any]],
    ) -> Any:
        shared = self._shared.get(key)
        if shared is None:
            listeners: list[Progress] = []

            last: list[tuple[str, dict[str, Any]]] = []

            def say(code: str, params: dict[str, Any]) -> None:
                if last == [(code, params)]:
                    return
                last[:] = [(code, params)]
                for listener in listeners:
                    listener(code, params)

            task = asyncio.create_task(self._deadline(work(say)))
            # A failure that no caller waited for to the end is not an error of the loop.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            shared = self._shared[key] = _Shared(task, listeners)
            task.add_done_callback(lambda _: self._shared.pop(key, None))
        if progress is not None:
            shared.listeners.append(progress)
        try:
            return await asyncio.shield(shared.task)
        finally:
            if progress is not None:
                shared.listeners.remove(progress)

    async def _deadline(self, work: Coroutine[Any, Any, Any]) -> Any:
        seconds = self._settings.environment_seconds
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise StepFailedError("environment_timed_out", seconds=round(seconds)) from None
        except OSError as error:
            if is_full(error):
                raise StepFailedError("disk_full") from None
            logger.exception("a model environment could not be built")
            raise StepFailedError(
                "environment_failed", evidence=error.strerror or type(error).__name__
            ) from None

    async def _resolve(
        self, plan: EnvironmentPlan, base: tuple[str, ...], key: str, say: Progress
    ) -> Lock:
        say("environment_resolving", {"packages": len(plan.requirements)})
        lines = (*base, *plan.requirements)
        finished = await self._compile(lines, (), plan.device)
        if finished.exit_code and is_offline(finished.output):
            lock = await asyncio.to_thread(
                self._locks.read, key, is_pinned=plan.is_pinned, stale=True
            )
            if lock is not None:
                return lock
            second = await self._compile(lines, ("--offline",), plan.device)
            # Failing that, the cache says which packages are missing; the index only says no.
            if not second.exit_code or missing_packages(second.output):
                finished = second
        lock = _lock_or_failure(finished, plan)
        excluded = cpu_builds(lock)
        if excluded:
            # The operator's wheels are for the CPU; the build for the GPU is the index's.
            finished = await self._compile((*lines, *excluded), (), plan.device)
            lock = _lock_or_failure(finished, plan)
        await asyncio.to_thread(self._locks.write, key, lock)
        return lock

    async def _compile(
        self, lines: tuple[str, ...], options: tuple[str, ...], device: str
    ) -> Finished:
        async with self._scratch() as scratch:
            wanted, pins = scratch / "requirements.in", scratch / "requirements.txt"
            await asyncio.to_thread(wanted.write_text, "\n".join(lines) + "\n", encoding="utf-8")
            command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-annotate", "--no-header"]
            command += ["--no-sources", "--python", base_python(), "--output-file", str(pins)]
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
            await asyncio.to_thread(_remove, environment.root)
            try:
                async with self._scratch() as scratch:
                    installer = Installer(
                        uv=[find_uv_bin()],
                        python=base_python(),
                        common=self._common(),
                        sources=source_options(self._settings, lock.device),
                        environ=self._child_environment(),
                        scratch=scratch,
                    )
                    await installer.install(lock, environment.root, say)
                marker = environment.root / _COMPLETE
                await asyncio.to_thread(write_whole, marker, lock.text)
            except BaseException:
                await asyncio.to_thread(_remove, environment.root)
                raise

    def _common(self) -> list[str]:
        return [
            *("--no-config", "--only-binary", ":all:", "--cache-dir", str(self._cache)),
            *("--color", "never", "--no-progress", "--no-python-downloads"),
            *("--keyring-provider", "disabled"),
        ]

    def _child_environment(self) -> dict[str, str]:
        return child_environment(os.environ, self._temporary)

    @contextlib.asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._temporary))
        try:
            yield folder
        finally:
            await asyncio.to_thread(_remove, folder)

    @contextlib.asynccontextmanager
    async def _guard(self, lock: Lock, say: Progress) -> AsyncIterator[None]:
        """Hold the lock file of an environment: another process may be building it."""
        path = self._guards / lock.digest[:_FOLDER_CHARS]
        file = await asyncio.to_thread(path.open, "a")
        try:
            while not await asyncio.to_thread(_try_lock, file.fileno()):
                say("environment_waiting", {"packages": len(lock.packages)})
                await asyncio.sleep(_WAIT_SECONDS)
            yield
        finally:
            # Closing gives the lock back; so does the end of the process, however it ends.
            file.close()

    def _open(self) -> None:
        for folder in (self._root, self._cache, self._temporary, self._guards):
            folder.mkdir(parents=True, exist_ok=True)
        (self._root / ".locks").mkdir(exist_ok=True)
        for leftover in self._temporary.iterdir():
            _remove(leftover)
        for folder in self._root.iterdir():
            if not folder.name.startswith(".") and not (folder / _COMPLETE).is_file():
                self._sweep(folder)

    def _sweep(self, folder: Path) -> None:
        """Remove a half-built environment, unless somebody is building it right now."""
        with (self._guards / folder.name).open("a") as file:
            if _try_lock(file.fileno()) and not (folder / _COMPLETE).is_file():
                logger.info("removing the half-built environment %s", folder.name)
                _remove(folder)


def _lock_or_failure(finished: Finished, plan: EnvironmentPlan) -> Lock:
    if finished.exit_code:
        raise named_failure(finished.output, plan.requirements)
    return lock_of(finished.output, plan.device)


def _base_requirements() -> tuple[str, ...]:
    lines = MODEL_SERVER_REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _is_complete(environment: Environment) -> bool:
    """Tell whether an environment is whole and its interpreter still there."""
    return (environment.root / _COMPLETE).is_file() and environment.python.exists()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # The marker goes first: a removal that is cut short must not look like an environment.
        (path / _COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
