"""How the values of settings are read; each reader raises ValueError that says what was expected."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from server.errors import PersephoneError
from server.promises import number

if TYPE_CHECKING:
    from collections.abc import Callable
    from urllib.parse import SplitResult

PREFIX = "PERSEPHONE_"

# An environment's name is the first segment of the gateway's path on the API port.
RESERVED_SEGMENTS = frozenset(
    {"upload", "prepare", "deploy", "monitor", "runs", "metrics", "sd", "healthz", "readyz"}
    | {"docs", "openapi", "tokens", "v2", "favicon"}
)
ENVIRONMENT_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


MAX_REPLICAS = 16
"""Of one deployment."""

LONGEST_SCRAPE_SECONDS = 4.0
"""Figures are stale after 15 seconds, in which two scrapes may fail or be late."""


class SettingsError(PersephoneError):
    """A setting is unknown or has no usable value; the service does not start."""

    def __init__(self, message: str) -> None:
        super().__init__("settings_invalid", reason=message)
        self.message = message

    def __str__(self) -> str:
        return self.message


def flag(text: str) -> bool:
    """Read true or false, or another word for it."""
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("true, yes, on or 1, or else false, no, off or 0")


def names(text: str) -> tuple[str, ...]:
    """Read words between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def positive(text: str) -> int:
    """Read a whole number above zero."""
    return number(int, text, lambda value: value > 0, "a whole number above zero")


def percent(text: str) -> int:
    """Read a share in percent."""
    expected = "a whole percentage from 1 to 100"
    return number(int, text, lambda value: 1 <= value <= 100, expected)


def seconds(text: str) -> float:
    """Read a number of seconds."""
    return number(float, text, lambda value: 0 < value < 1e9, "a number of seconds above zero")


def scrape_interval(text: str) -> float:
    """Read how often figures are read; seldom enough, and they would be stale in between."""
    expected = f"a number of seconds above zero, at most {LONGEST_SCRAPE_SECONDS:g}"
    return number(float, text, lambda value: 0 < value <= LONGEST_SCRAPE_SECONDS, expected)


def port(text: str) -> int:
    """Read a port; 0 takes a free one."""
    return number(int, text, lambda value: 0 <= value <= 65535, "a port between 0 and 65535")


def ports(text: str) -> tuple[int, int]:
    """Read a range of ports."""
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text.strip())
    if match is None:
        raise ValueError("two ports as in 20000-29999")
    low, high = int(match[1]), int(match[2])
    if not 1 <= low <= high <= 65535:
        raise ValueError("two ports between 1 and 65535, the lower one first")
    return low, high


def users(text: str) -> tuple[int, int]:
    """Read a range of user ids."""
    match = re.fullmatch(r"(\d{1,10})-(\d{1,10})", text.strip())
    if match is None or not 0 < int(match[1]) <= int(match[2]) < 2**32 - 1:
        raise ValueError("two user numbers above zero as in 60706-61183")
    return int(match[1]), int(match[2])


def _parts(address: str, expected: str) -> SplitResult:
    """Take an address apart, if its host and port can be read."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        raise ValueError(expected) from None
    return parts


def origins(text: str) -> tuple[str, ...]:
    """Read exact origins."""
    origins = names(text)
    expected = "origins as in http://localhost:3000"
    for origin in origins:
        parts = _parts(origin, expected)
        if "*" in origin or origin == "null":
            raise ValueError(
                "exact origins: answers carry credentials, so a wildcard or null would open "
                "them to every page"
            )
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path not in {"", "/"}:
            raise ValueError(expected)
    return tuple(origin.rstrip("/") for origin in origins)


def environments(text: str) -> tuple[str, ...]:
    """Read the environments' names."""
    found = names(text)
    if not found:
        raise ValueError("at least one environment")
    for name in found:
        if not ENVIRONMENT_NAME.fullmatch(name) or name in RESERVED_SEGMENTS:
            raise ValueError(
                f"names of small letters, digits and dashes that are no path of the API, "
                f"which {name!r} is not"
            )
    return found


def replicas(text: str) -> tuple[tuple[str, int], ...]:
    """Read ``2`` (everywhere, under the empty name) or ``dev=1,prod=4``."""
    found: dict[str, int] = {}
    expected = f"a number from 1 to {MAX_REPLICAS}, or one for each environment as in dev=1,prod=4"
    for part in names(text):
        name, _, digits = part.rpartition("=")
        count = number(int, digits, lambda value: 1 <= value <= MAX_REPLICAS, expected)
        if name.strip() in found:
            raise ValueError(expected)
        found[name.strip()] = count
    return tuple(found.items())


def choice(*allowed: str) -> Callable[[str], str]:
    """Return the reader of one word of several."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return text

    return parse


def url(text: str) -> str:
    """Read an http or https address, or nothing."""
    if text:
        expected = "an http:// or https:// address"
        parts = _parts(text, expected)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ValueError(expected)
    return text.rstrip("/")


def otlp_endpoint(text: str) -> str:
    """Read where traces go."""
    address = url(text)
    # The packages are optional; better now than with the first request.
    if address and find_spec("opentelemetry") is None:
        raise SettingsError(
            f"{PREFIX}OTLP_ENDPOINT needs packages that are not installed: "
            "pip install -r requirements-tracing.txt"
        )
    return address


def host(text: str) -> str:
    """Read the address to listen on."""
    return text.strip().removeprefix("[").removesuffix("]")


def database_url(text: str) -> str:
    """Read the address of a database."""
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
