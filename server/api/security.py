"""Who may talk to us at all: the Host allow list, and the origin of everything that is not a read."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.api.errors import MisdirectedError
from server.errors import ForbiddenError, InvalidRequestError

if TYPE_CHECKING:
    from aiohttp import web

    from server.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

# How many different Host values are remembered, so that a known one costs one look-up.
_KNOWN_HOSTS = 256


class Guard:
    """Checks every request before its handler sees it.

    A page of a foreign site can send requests with the user's cookies, and a name that an attacker
    rebinds to 127.0.0.1 makes his page same-origin with us: the first is stopped by the origin
    (body-less POSTs and forms need no CORS preflight), the second by the Host.
    """

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(settings.cors_origins)
        self._names = _own_names(settings)
        # An address as Host cannot be rebound; behind 0.0.0.0 we do not know which are ours.
        self._any_address = _is_wildcard(settings.host)
        self._known: set[str] = set()

    def check(self, request: web.Request) -> None:
        """Let the request pass, or raise.

        ``MisdirectedError``: the Host is not ours. ``ForbiddenError``: a foreign page tries to
        change something. ``InvalidRequestError``: no Host, or several.
        """
        headers = request.headers
        host = headers.get("Host", "")
        if host not in self._known:
            self._check_host(request, host)
        target = request.raw_path
        if not target.startswith("/"):
            self._check_target(target)
        if request.method not in SAFE_METHODS:
            origin = headers.get("Origin")
            if origin is None:
                if headers.get("Sec-Fetch-Site") == "cross-site":
                    raise ForbiddenError("cross_site_refused")
            elif not self.allows(origin, host):
                raise ForbiddenError("origin_not_allowed", origin=origin)

    def allows(self, origin: str, host: str) -> bool:
        """Whether a page of ``origin`` may change things here: a configured one, or our own."""
        return origin in self._origins or origin in {f"http://{host}", f"https://{host}"}

    def is_preflight_of_ours(self, request: web.Request) -> bool:
        """Whether a page of a configured origin asks what it may send here."""
        headers = request.headers
        return (
            request.method == "OPTIONS"
            and "Access-Control-Request-Method" in headers
            and headers.get("Origin") in self._origins
        )

    def _check_host(self, request: web.Request, host: str) -> None:
        if len(request.headers.getall("Host", ())) != 1:
            if not host and request.version < (1, 1):
                return
            raise InvalidRequestError("host_missing")
        self._check_name(host)
        if len(self._known) < _KNOWN_HOSTS:
            self._known.add(host)

    def _check_target(self, target: str) -> None:
        """Hold ``GET http://host/path`` to its own host: it overrides the header."""
        try:
            parts = urlsplit(target)
        except ValueError:
            raise InvalidRequestError("host_missing") from None
        if parts.netloc:
            self._check_name(parts.netloc)

    def _check_name(self, host: str) -> None:
        name = _host_name(host)
        if name is None or not (name in self._names or (self._any_address and _is_address(name))):
            raise MisdirectedError("host_not_allowed", host=host)


def _own_names(settings: Settings) -> frozenset[str]:
    names = {*LOOPBACK_NAMES, *settings.allowed_hosts}
    if not _is_wildcard(settings.host):
        names.add(settings.host)
    if settings.public_url:
        names.add(urlsplit(settings.public_url).hostname or "localhost")
    return frozenset(_plain(name.lower().strip("[]")) for name in names)


def _host_name(host: str) -> str | None:
    """Return the name or address of a Host header without its port, or ``None`` if malformed."""
    try:
        parts = urlsplit(f"//{host}")
        port_is_fine = parts.port is None or parts.port >= 0
    except ValueError:
        return None
    if parts.netloc != host or parts.username is not None or not port_is_fine:
        return None
    return None if parts.hostname is None else _plain(parts.hostname)


def _plain(name: str) -> str:
    """Return an address in its one usual form; other names as they are."""
    try:
        address = ip_address(name)
    except ValueError:
        return name
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _is_wildcard(host: str) -> bool:
    return host in {"", "*", "0.0.0.0", "::", "[::]"}  # noqa: S104 - compared, not bound


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
