"""Locks: the exact packages of a model environment, and where they may come from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from server.environments.plan import CPU
from server.environments.pythons import Python, own_python
from server.errors import StepFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from server.environments.plan import EnvironmentPlan
    from server.settings import Settings

_FORMAT = 1
_UNPINNED_SECONDS = 7 * 24 * 3600.0
_CUDA_NAME = re.compile(r"nvidia-|cuda-|cupy-cuda|(?:pytorch-)?triton$|jax-cuda|onnxruntime-gpu$")
_HARMLESS = frozenset({"nvidia-ml-py"})
_PYTHON = "# python "


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The exact packages of one environment.

    ``text`` has one ``name==version`` a line, below a line that names the Python if that is not
    the service's own. ``digest`` covers it together with the Python and the platform it is for,
    ``packages`` maps names to versions, ``device`` is ``cpu`` or ``cuda``.
    """

    text: str
    digest: str
    packages: dict[str, str]
    device: str
    python: Python = field(default_factory=own_python)


def lock_of(
    output: str, device: str, python: Python | None = None, *, names_python: bool = True
) -> Lock:
    """Make a lock from what the resolver wrote for an interpreter, by default the service's own.

    Without ``names_python`` the interpreter was the service's own when the lock was made.

    Raises:
        StepFailedError: ``cuda_wheels_on_cpu``; ``environment_failed`` if it is no list of pins.
    """
    packages: dict[str, str] = {}
    for line in output.splitlines():
        content = line.split("#", 1)[0].strip()
        if content:
            name, version = _pin(content)
            packages[name] = version
    python = python or own_python()
    is_named = names_python and python != own_python()
    text = f"{_PYTHON}{python.version}\n" if is_named else ""
    text += "".join(f"{name}=={version}\n" for name, version in sorted(packages.items()))
    digest = hashlib.sha256(f"{python.platform}\n{text}".encode()).hexdigest()
    lock = Lock(text=text, digest=digest, packages=packages, device=device, python=python)
    refuse_cuda_on_cpu(lock)
    return lock


def python_named_in(text: str) -> str | None:
    """Return the version of the Python that a lock is for, if it is not the service's own."""
    first = text.partition("\n")[0]
    return first.removeprefix(_PYTHON).strip() if first.startswith(_PYTHON) else None


def refuse_cuda_on_cpu(lock: Lock) -> None:
    """Refuse CUDA libraries for a CPU: gigabytes that could never be used.

    Raises:
        StepFailedError: ``cuda_wheels_on_cpu``, naming them.
    """
    if lock.device != CPU:
        return
    found = sorted(
        f"{name}=={version}" for name, version in lock.packages.items() if _is_cuda(name, version)
    )
    if found:
        raise StepFailedError(
            "cuda_wheels_on_cpu", packages=found[:4], count=len(found), evidence=", ".join(found)
        )


def cpu_builds(lock: Lock) -> list[str]:
    """Return constraints against builds for the CPU in a lock that is for a GPU."""
    if lock.device == CPU:
        return []
    return [
        f"{name}!={version}" for name, version in lock.packages.items() if version.endswith("+cpu")
    ]


def source_options(settings: Settings, device: str) -> list[str]:
    """Return the installer's options that say where wheels come from; only settings do."""
    options: list[str] = []
    if settings.wheel_index:
        options += ["--default-index", settings.wheel_index]
    if device == CPU and settings.wheel_index_cpu:
        # An index of CPU builds has old copies of other packages too: the best of both counts.
        options += ["--index", settings.wheel_index_cpu, "--index-strategy", "unsafe-best-match"]
    for links in settings.wheel_links:
        options += ["--find-links", links]
    if device == CPU and not settings.wheel_index_cpu and not settings.wheel_links:
        options += ["--torch-backend", "cpu"]
    return options


class LockCache:
    """Remembers on disk which lock a plan got, so that an equal plan needs no resolver.

    A plan of exact versions keeps its lock for good: other versions of the rest would be another
    environment, for nothing. With a range in it the lock is looked up again after a week; until
    that succeeds the old one is still there for a machine without network.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(
        self, plan: EnvironmentPlan, base: Sequence[str], sources: Sequence[str], python: Python
    ) -> str:
        """Return the digest of everything that decides a resolution."""
        parts = {
            "format": _FORMAT,
            "device": plan.device,
            "requirements": [*sorted(base), *plan.requirements],
            "sources": list(sources),
            "platform": python.platform,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def open(self) -> None:
        """Make the folder; remove what a killed service left half-written."""
        self._folder.mkdir(exist_ok=True)
        for left in self._folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def read(
        self, key: str, python: Python, *, is_pinned: bool, stale: bool = False
    ) -> Lock | None:
        """Return the lock of a plan, if it is known and (unless ``stale`` will do) fresh."""
        try:
            stored = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
            age = time.time() - float(stored["at"])
            if not (stale or is_pinned or 0 <= age < _UNPINNED_SECONDS):
                return None
            return lock_of(str(stored["text"]), str(stored["device"]), python)
        except (OSError, ValueError, KeyError, TypeError, StepFailedError):
            return None

    def write(self, key: str, lock: Lock) -> None:
        """Remember the lock of a plan.

        Raises:
            OSError: it cannot be written.
        """
        path = self._folder / f"{key}.json"
        content = {"at": time.time(), "device": lock.device, "text": lock.text}
        write_whole(path, json.dumps(content))


def write_whole(path: Path, content: str) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _pin(content: str) -> tuple[str, str]:
    try:
        requirement = Requirement(content)
    except InvalidRequirement:
        raise StepFailedError("environment_failed", evidence="the lock is malformed") from None
    versions = [spec.version for spec in requirement.specifier if spec.operator == "=="]
    if len(versions) != 1 or requirement.url is not None:
        # Wheels of other folders are pinned by version as well; an address would be a path.
        raise StepFailedError("environment_failed", evidence="the lock is malformed")
    return canonicalize_name(requirement.name), versions[0]


def _is_cuda(name: str, version: str) -> bool:
    if name in _HARMLESS:
        return False
    return _CUDA_NAME.match(name) is not None or re.search(r"\+cu\d", version) is not None
