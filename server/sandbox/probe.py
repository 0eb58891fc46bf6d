"""Finds out how strictly this machine lets us confine: every level is really tried."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.sandbox.bubblewrap import SCRATCH, find_bubblewrap
from server.sandbox.cgroups import PREFIX, Cgroups, find_cgroups
from server.sandbox.inside.reach import barrier
from server.sandbox.inside.self_check import WRITTEN
from server.sandbox.interpreter import copy_interpreter
from server.sandbox.launch import Launch, Sandbox, base_prefix
from server.sandbox.levels import Level
from server.sandbox.users import Users, open_the_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.sandbox.child import Child
    from server.settings import Settings

logger = logging.getLogger(__name__)

_SECONDS = 10.0
_FOLDER = "sandbox-check"
_NAMESPACES = ("user", "mnt", "pid", "ipc", "net")
_SYS_ADMIN = 1 << 21
_FILE_BYTES = 4096
_MEMORY_BYTES = 1024**3


class _NotHereError(Exception):
    """A level cannot be had; says why."""


async def probe(settings: Settings, tree: Path, highest: Level = Level.NAMESPACES) -> Sandbox:
    """Return the strictest sandbox that was seen to hold, not above ``highest``.

    ``tree`` holds the modules that run inside.
    """
    data_dir = settings.data_dir
    pool = Users(*settings.model_users) if os.geteuid() == 0 else None
    if pool is not None:
        # Model processes are other users, who have to read what is made for them from here on. What
        # keeps everybody else out is the data folder itself.
        os.umask(0o022)
    problems: list[str] = []
    cgroups = await asyncio.to_thread(_cgroups)
    for level, make in ((Level.NAMESPACES, _namespaces), (Level.KERNEL, _kernel)):
        if level > highest:
            continue
        try:
            sandbox = await make(data_dir, pool, problems)
            await _hold_to_it(sandbox, data_dir, tree)
            sandbox = await _with_cgroups(sandbox, cgroups, data_dir, tree)
        except (_NotHereError, OSError) as error:
            problems.append(f"not level {level.value}: {error}")
            logger.warning("sandbox: %s", problems[-1])
        else:
            logger.info("sandbox: level %d: %s", level, ", ".join(sandbox.layers))
            return sandbox
    logger.warning(
        "sandbox: level %d: models that can hold code are %s",
        Level.LIMITS,
        "run all the same" if settings.allow_unsandboxed else "refused",
    )
    return Sandbox(
        level=Level.LIMITS, problems=tuple(problems), is_lenient=settings.allow_unsandboxed
    )


def _cgroups() -> Cgroups | None:
    try:
        return find_cgroups()
    except OSError as error:
        logger.warning("sandbox: no cgroups: %s", error)
        return None


async def _with_cgroups(
    sandbox: Sandbox, cgroups: Cgroups | None, data_dir: Path, tree: Path
) -> Sandbox:
    """Return the sandbox with cgroups, if they hold a process of it: no level depends on them."""
    if cgroups is None:
        return sandbox
    fuller = replace(sandbox, cgroups=cgroups)
    try:
        await _hold_to_it(fuller, data_dir, tree)
    except (_NotHereError, OSError) as error:
        logger.warning("sandbox: no cgroups: %s", error)
        return sandbox
    return fuller


async def _namespaces(_data_dir: Path, users: Users | None, problems: list[str]) -> Sandbox:
    bubblewrap = await find_bubblewrap(changes_user=users is not None)
    if bubblewrap is None:
        raise _NotHereError("bubblewrap is not installed")
    if problem := bubblewrap.problem():
        raise _NotHereError(problem)
    return Sandbox(
        level=Level.NAMESPACES, problems=tuple(problems), bubblewrap=bubblewrap, users=users
    )


async def _kernel(data_dir: Path, users: Users | None, problems: list[str]) -> Sandbox:
    reaches, interpreter = False, None
    if users is not None:
        reaches = _may_mount()
        if not reaches:
            interpreter = await asyncio.to_thread(_make_reachable, data_dir)
    return Sandbox(
        level=Level.KERNEL,
        problems=tuple(problems),
        users=users,
        reaches=reaches,
        interpreter=interpreter,
    )


def _may_mount() -> bool:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    rights = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(rights.split()[1], 16) & _SYS_ADMIN)


def _make_reachable(data_dir: Path) -> Path | None:
    """Let other users pass the data folder; return the interpreter for them if it is a copy."""
    closed = barrier(data_dir, -1)
    if closed is not None:
        raise _NotHereError(
            f"model processes are other users and may not pass {closed}, above the data folder; "
            "set PERSEPHONE_DATA_DIR to a folder that they reach, or do not run the service as root"
        )
    open_the_way(data_dir)
    if barrier(base_prefix() / "lib", -1) is None:
        return None
    return copy_interpreter(data_dir / "interpreter")


async def _hold_to_it(sandbox: Sandbox, data_dir: Path, tree: Path) -> None:
    """Raise _NotHereError unless a process inside finds closed what the level promises to close."""
    with _bait(data_dir / _FOLDER) as (readable, writable, canary):
        scratch = SCRATCH if sandbox.level is Level.NAMESPACES else ()
        given = {
            "level": sandbox.level.value,
            "pid": os.getpid(),
            "user": -1 if sandbox.users is None else os.geteuid(),
            "namespaces": await asyncio.to_thread(_own_namespaces),
            "canary": str(canary),
            "readable": str(readable),
            "writable": [str(writable), *scratch],
            "groups": 0 if sandbox.cgroups is None else len(sandbox.cgroups),
            "prefix": PREFIX,
        }
        launch = Launch(
            tree=tree,
            target="server.sandbox.inside.self_check",
            arguments=[json.dumps(given)],
            read_only=[readable],
            writable=[writable],
            memory_bytes=_MEMORY_BYTES,
            file_bytes=_FILE_BYTES,
        )
        child = await sandbox.start(launch)
        try:
            async with asyncio.timeout(_SECONDS):
                found = await _told(child)
        except TimeoutError:
            raise _NotHereError(f"no answer from inside within {_SECONDS:.0f} s") from None
        finally:
            await child.kill()
        if (canary.parent / WRITTEN).exists():
            # Inside, the folder may be a stand-in that is gone with the process.
            found["open"].append("writing beside the files of the service")
    if found["open"]:
        raise _NotHereError("open from inside: " + ", ".join(found["open"]))
    if found["closed"]:
        raise _NotHereError("not to be had inside: " + ", ".join(found["closed"]))


def _own_namespaces() -> dict[str, str]:
    return {name: str(Path("/proc/self/ns", name).readlink()) for name in _NAMESPACES}


async def _told(child: Child) -> dict[str, Any]:
    line = await child.line()
    code = await child.wait()
    if line is None or code != 0:
        raise _NotHereError(" | ".join(child.log) or f"exit code {code}")
    found: dict[str, Any] = json.loads(line)
    return found


@contextmanager
def _bait(folder: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Lay out a file that may be read, a folder that may be written and a file that may not."""
    shutil.rmtree(folder, ignore_errors=True)
    readable, writable, canary = (folder / name for name in ("readable", "writable", "canary"))
    writable.mkdir(parents=True)
    folder.chmod(0o711)
    readable.write_bytes(b"for everybody")
    readable.chmod(0o644)
    canary.write_bytes(b"for nobody")
    canary.chmod(0o600)
    try:
        yield readable, writable, canary
    finally:
        shutil.rmtree(folder, ignore_errors=True)
