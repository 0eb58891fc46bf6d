"""What a support bundle tells of the service itself, and the bundle's file."""

from __future__ import annotations

import io
import platform
import shlex
import sqlite3
import zipfile
from dataclasses import fields
from importlib import metadata
from typing import TYPE_CHECKING, Any

from server import __version__
from server.environments.lock import source_options
from server.environments.plan import CPU
from server.environments.pythons import own_python

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.sandbox.launch import Sandbox
    from server.settings import Settings

LEFT_OUT = "left out"
"""What stands in place of a setting that somebody has set and that may name a machine or a secret."""

# Of these the value is one of a few words, or was chosen to be read by everybody.
_TELLING = frozenset(
    {"engine", "inference_auth", "cookie_samesite", "log_format", "log_level", "slo_window"}
    | {"environments", "replicas", "slo_availability", "slo_latency_ms", "slo_latency_share"}
)
INSTALLED = ("--only-binary", ":all:", "--no-config")
_PACKAGES = ("aiohttp", "aiosqlite", "alembic", "orjson", "sqlalchemy", "uv", "uvloop")


def settings_shown(settings: Settings) -> dict[str, Any]:
    """Return the settings without those that may hold a secret, a path or an address."""
    return {spec.name: _shown(spec.name, settings, spec.default) for spec in fields(settings)}


def _shown(name: str, settings: Settings, default: object) -> Any:
    value = getattr(settings, name)
    if isinstance(value, bool | int | float) or name in _TELLING:
        return value
    return "default" if value == default else LEFT_OUT


def environment_shown(passport: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return how the environment of a model can be made again, from ``lock.txt`` beside it.

    Packages come from where the settings say; places that were set are left out.
    """
    device, python = str(passport.get("lock_device", CPU)), str(passport.get("python", ""))
    set_here = {settings.wheel_index, settings.wheel_index_cpu, *settings.wheel_links}
    options = source_options(settings, device)
    sources = [LEFT_OUT if each in set_here else each for each in options]
    install = ["uv", "pip", "install", "--python", "environment", "--no-deps"]
    return {
        "python": python,
        "device": device,
        "digest": passport.get("environment"),
        "platform": own_python().platform,
        "uv": _version("uv"),
        "commands": [
            shlex.join(["uv", "venv", "--python", python, "environment"]),
            shlex.join([*install, *INSTALLED, *sources, "--requirements", "lock.txt"]),
        ],
    }


def versions(sandbox: Sandbox) -> dict[str, Any]:
    """Return which programs the service consists of, and how far it confines models; reads files."""
    return {
        "persephone": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "sqlite": sqlite3.sqlite_version,
        "sandbox": {"level": sandbox.level.value, "layers": list(sandbox.layers)},
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return files as a zip; takes its time."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()
