"""Interpreters for model environments: the service's own, those listed by the operator, the machine's."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version
from uv import find_uv_bin

from server.environments.uv import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

logger = logging.getLogger(__name__)

OLDEST = Version("3.9")
"""The model server's modules are written for this one and newer."""

# The service starts without them rather than wait for a folder on a network that is gone.
_LIST_SECONDS = 10.0
_DESCRIBE = """
import json, os, platform, sys, sysconfig
path = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
version = platform.python_version()
where = f"{sysconfig.get_platform()} {'-'.join(platform.libc_ver())}"
tag = sys.implementation.cache_tag
described = {"path": path, "version": version, "platform": f"{tag} {version} {where}"}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Python:
    """One interpreter: its file, its version (``3.9.18``), and what its packages are built for."""

    path: str
    version: str
    platform: str

    @property
    def minor(self) -> str:
        """The part of the version that decides which wheels fit, as in ``3.9``."""
        return ".".join(self.version.split(".")[:2])


@cache
def own_python() -> Python:
    """Return the interpreter that the service runs on, outside its own environment."""
    names: dict[str, dict[str, str]] = {}
    exec(_DESCRIBE, names)  # noqa: S102 - the same few lines that other interpreters are asked
    return Python(**names["described"])


async def found_pythons(
    paths: Iterable[str],
    folder: Path,
    environ: Mapping[str, str],
    may_use: Callable[[Path], bool],
) -> tuple[Python, ...]:
    """Return the service's own interpreter, then those of ``paths`` that work, newest first.

    Of the minor versions that are missing then, those follow that the machine has.
    """
    own = own_python()
    listed = await _usable(paths, folder, environ, may_use)
    found = await _usable(
        await _installed(folder, environ), folder, environ, may_use, is_listed=False
    )
    pythons = [own, *(each for each in listed if each.platform != own.platform)]
    for each in found:
        if each.minor not in {python.minor for python in pythons}:
            pythons.append(each)
    return tuple(pythons)


async def _usable(
    paths: Iterable[str],
    folder: Path,
    environ: Mapping[str, str],
    may_use: Callable[[Path], bool],
    *,
    is_listed: bool = True,
) -> list[Python]:
    """Return those interpreters that work and that model processes can read, newest first."""
    level = logging.WARNING if is_listed else logging.DEBUG
    usable: dict[str, Python] = {}
    for path in dict.fromkeys(paths):
        each = await _described(path, folder, environ, level)
        if each is not None and may_use(Path(each.path)):
            usable[each.platform] = each
        elif each is not None:
            message = "%s lies where model processes, which are other users, cannot read it"
            logger.log(level, message, each.path)
    return sorted(usable.values(), key=lambda each: Version(each.version), reverse=True)


async def _installed(folder: Path, environ: Mapping[str, str]) -> list[str]:
    """Return the interpreters of this machine that uv knows of; it downloads none."""
    command = [find_uv_bin(), "python", "list", "--only-installed", "--offline", "--no-config"]
    try:
        async with asyncio.timeout(_LIST_SECONDS):
            ended = await run([*command, "--output-format", "json"], folder=folder, environ=environ)
        return [
            str(each["path"])
            for each in json.loads(ended.output)
            if each["implementation"] == "cpython" and each["variant"] == "default"
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        logger.warning("uv did not say which interpreters there are: %s", error)
        return []


def python_for(version: str, pythons: Sequence[Python]) -> Python | None:
    """Return the interpreter of a version; failing that, one that takes the same wheels."""
    same = [each for each in pythons if each.version == version]
    like = [each for each in pythons if each.minor == ".".join(version.split(".")[:2])]
    return next(iter([*same, *like]), None)


async def _described(
    path: str, folder: Path, environ: Mapping[str, str], level: int
) -> Python | None:
    program = f"{_DESCRIBE}\nprint(json.dumps(described))"
    try:
        # TimeoutError is an OSError.
        async with asyncio.timeout(_LIST_SECONDS):
            ended = await run([path, "-I", "-S", "-c", program], folder=folder, environ=environ)
        python = Python(**json.loads(ended.output.splitlines()[-1]))
        if Version(python.version) >= OLDEST:
            return python
        logger.log(level, "%s is older than Python %s", path, OLDEST)
    except (OSError, ValueError, LookupError, TypeError, InvalidVersion) as error:
        logger.log(level, "%s does not work as a Python for models: %s", path, error)
    return None
