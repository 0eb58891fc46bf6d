"""Every setting: name, default, meaning; read once at start and passed by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from server.errors import PersephoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "PERSEPHONE_"

# An environment's name is the first segment of the gateway's path on the API port.
RESERVED_SEGMENTS = frozenset(
    {"upload", "prepare", "deploy", "monitor", "runs", "metrics", "sd", "healthz", "readyz"}
    | {"docs", "openapi", "tokens", "v2", "favicon"}
)
ENVIRONMENT_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


MAX_REPLICAS = 16
"""Of one deployment."""


class SettingsError(PersephoneError):
    """A setting is unknown or has no usable value; the service does not start."""

    def __init__(self, message: str) -> None:
        super().__init__("settings_invalid", reason=message)
        self.message = message

    def __str__(self) -> str:
        return self.message


def _flag(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("true or false")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError("a whole number above zero")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError("a number of seconds above zero")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("a port between 0 and 65535")
    return value


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text.strip())
    if match is None:
        raise ValueError("two ports as in 20000-29999")
    low, high = int(match[1]), int(match[2])
    if not 1 <= low <= high <= 65535:
        raise ValueError("two ports between 1 and 65535, the lower one first")
    return low, high


def _origins(text: str) -> tuple[str, ...]:
    origins = _names(text)
    for origin in origins:
        parts = urlsplit(origin)
        if "*" in origin or origin == "null":
            raise ValueError(
                "exact origins: answers carry credentials, so a wildcard or null would open "
                "them to every page"
            )
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path not in {"", "/"}:
            raise ValueError("origins as in http://localhost:3000")
    return tuple(origin.rstrip("/") for origin in origins)


def _environments(text: str) -> tuple[str, ...]:
    names = _names(text)
    if not names:
        raise ValueError("at least one environment")
    for name in names:
        if not ENVIRONMENT_NAME.fullmatch(name) or name in RESERVED_SEGMENTS:
            raise ValueError(
                f"names of small letters, digits and dashes that are no path of the API, "
                f"which {name!r} is not"
            )
    return names


def _replicas(text: str) -> tuple[tuple[str, int], ...]:
    """Read ``2`` (everywhere, under the empty name) or ``dev=1,prod=4``."""
    found: dict[str, int] = {}
    for part in _names(text):
        name, _, number = part.rpartition("=")
        if not number.isdigit() or not 1 <= int(number) <= MAX_REPLICAS or name.strip() in found:
            raise ValueError(
                f"a number from 1 to {MAX_REPLICAS}, or one for each environment as in dev=1,prod=4"
            )
        found[name.strip()] = int(number)
    return tuple(found.items())


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return text

    return parse


def _url(text: str) -> str:
    if text:
        parts = urlsplit(text)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ValueError("an http:// or https:// address")
    return text.rstrip("/")


def _host(text: str) -> str:
    return text.strip().removeprefix("[").removesuffix("]")


def _database_url(text: str) -> str:
    if not text:
        return text
    try:
        dialect = make_url(text).get_dialect()
        dialect.import_dbapi()
    except (ArgumentError, ImportError, ValueError):
        dialect = None
    if dialect is None or not dialect.is_async:
        # Not as a ValueError: the value, which may hold a password, would be shown.
        raise SettingsError(
            f"{PREFIX}DATABASE_URL cannot be used: expected an SQLAlchemy URL with an installed "
            "asynchronous driver, as in sqlite+aiosqlite:////srv/persephone.db"
        )
    return text


@lru_cache(maxsize=64)
def is_loopback_host(name: str) -> bool:
    """Whether a host's name or address means this machine only."""
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _setting(default: Any, parse: Callable[[str], Any], about: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": about})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator chose. Field ``name`` is read from ``PERSEPHONE_NAME``."""

    host: str = _setting("127.0.0.1", _host, "Address the API listens on.")
    port: int = _setting(8000, _port, "Port the API listens on; 0 takes a free one.")
    data_dir: Path = _setting(
        Path("data"), Path, "Folder of everything the service keeps; one service per folder."
    )
    database_url: str = _setting(
        "", _database_url, "SQLAlchemy URL of the database; empty means SQLite in the data folder."
    )
    cors_origins: tuple[str, ...] = _setting(
        ("http://localhost:3000", "http://127.0.0.1:3000"),
        _origins,
        "Exact origins of the UI, separated by commas. `*` is refused.",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        _names,
        "Further values of the Host header (without port) that are ours; loopback names, "
        "PERSEPHONE_HOST and the host of PERSEPHONE_PUBLIC_URL always are.",
    )
    public_url: str = _setting(
        "", _url, "Address under which users reach the API, if it differs from host and port."
    )
    cookie_samesite: str = _setting(
        "lax",
        _choice("lax", "strict", "none"),
        "SameSite of the session cookie; `none` (a UI on another site) implies Secure.",
    )
    inference_auth: str = _setting(
        "auto",
        _choice("auto", "token", "open"),
        "Who may predict: `auto` is open while every listener is loopback and PERSEPHONE_PUBLIC_URL "
        "names no other host, else as `token`; "
        "`token` lets only the owner's session through the gateway; `open` lets everybody.",
    )
    engine: str = _setting("local", _choice("local"), "Where replicas run.")
    environments: tuple[str, ...] = _setting(
        ("dev", "stage", "prod"), _environments, "Names of the environments."
    )
    replicas: tuple[tuple[str, int], ...] = _setting(
        (),
        _replicas,
        "Replicas of a deployment that asks for no number: one number, or one for each "
        "environment as in `dev=1,prod=4`; empty means one.",
    )
    endpoint_ports: tuple[int, int] = _setting(
        (20000, 29999), _ports, "Ports for the deployments' own addresses."
    )
    max_upload_bytes: int = _setting(524_288_000, _positive, "Largest artifact, in bytes.")
    offer_cpu: bool = _setting(
        False, _flag, "Adds the entry `cpu` to the GPU list, so that the page works on a laptop."
    )
    allow_cpu_fallback: bool = _setting(
        False,
        _flag,
        "A model that was given a GPU and runs on the CPU is a warning, not a failure.",
    )
    prometheus_url: str = _setting(
        "", _url, "Prometheus to ask for the figures; empty means the embedded monitor."
    )
    wheel_index: str = _setting(
        "", _url, "Package index of model environments; empty means uv's default."
    )
    wheel_index_cpu: str = _setting(
        "", _url, "Package index asked first for CPU devices (CPU builds of torch)."
    )
    wheel_links: tuple[str, ...] = _setting(
        (), _names, "Folders or pages with further wheels, separated by commas."
    )
    log_format: str = _setting("console", _choice("console", "json"), "Form of the log lines.")
    log_level: str = _setting(
        "info", _choice("debug", "info", "warning", "error"), "Least level that is logged."
    )
    scrape_seconds: float = _setting(2.0, _seconds, "How often the embedded monitor scrapes.")
    prepare_concurrency: int = _setting(2, _positive, "Preparations that run at the same time.")
    load_seconds: float = _setting(120.0, _seconds, "Deadline for loading a model.")
    smoke_seconds: float = _setting(30.0, _seconds, "Deadline for the smoke test.")
    environment_seconds: float = _setting(
        900.0, _seconds, "Deadline for building a model environment."
    )
    inspect_seconds: float = _setting(120.0, _seconds, "Deadline for inspecting an artifact.")
    predict_seconds: float = _setting(10.0, _seconds, "Deadline of one prediction.")
    drain_seconds: float = _setting(
        3.0, _seconds, "How long a replaced replica keeps answering on open connections."
    )
    lease_seconds: float = _setting(
        1800.0, _seconds, "How long a prepared run that is not deployed keeps its GPU."
    )
    model_memory_bytes: int = _setting(
        8 * 1024**3, _positive, "Largest address space of a CPU model process, in bytes."
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read ``PERSEPHONE_*``.

        Raises:
            SettingsError: a name is unknown or a value cannot be used; says which and why.
        """
        table = {PREFIX + spec.name.upper(): spec for spec in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX):
                continue
            spec = table.get(name)
            if spec is None:
                raise SettingsError(f"{name} is not a setting; docs/settings.md lists them")
            try:
                values[spec.name] = spec.metadata["parse"](text)
            except ValueError as error:
                raise SettingsError(f"{name}={text!r} cannot be used: expected {error}") from None
        cls._check_replicas(values)
        # Child processes are given paths too, and none of them starts in our folder.
        values["data_dir"] = values.get("data_dir", Path("data")).absolute()
        return cls(**values)

    @classmethod
    def _check_replicas(cls, values: Mapping[str, Any]) -> None:
        known = {"", *values.get("environments", cls().environments)}
        for name, _number in values.get("replicas", ()):
            if name not in known:
                raise SettingsError(f"{PREFIX}REPLICAS names {name!r}, which is no environment")

    def replicas_in(self, environment: str) -> int:
        """Return how many replicas a deployment has that asks for no number."""
        numbers = dict(self.replicas)
        return numbers.get(environment, numbers.get("", 1))

    @property
    def is_loopback(self) -> bool:
        """Whether every listener is reachable from this machine only."""
        return is_loopback_host(self.host)

    @property
    def is_published(self) -> bool:
        """Whether users reach the API by a name of their own, so through a proxy of some kind."""
        return bool(self.public_url) and not is_loopback_host(
            urlsplit(self.public_url).hostname or ""
        )

    @property
    def endpoint_host(self) -> str:
        """Address on which the deployments' own ports listen."""
        return "127.0.0.1" if self.is_loopback else self.host

    @property
    def replica_host(self) -> str:
        """Address under which the service itself reaches the deployments' own ports."""
        anywhere = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared
        return anywhere.get(self.endpoint_host, self.endpoint_host)

    @property
    def inference_is_open(self) -> bool:
        """Whether predictions need no identification."""
        is_near = self.is_loopback and not self.is_published
        return self.inference_auth == "open" or (self.inference_auth == "auto" and is_near)

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'persephone.db'}"
