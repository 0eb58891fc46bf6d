"""The addresses that answers name: a deployment's own one, and the gateway's."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server import keys

if TYPE_CHECKING:
    from aiohttp import web


def _base(request: web.Request) -> str:
    public = request.app[keys.SETTINGS].public_url
    return public or f"{request.scheme}://{request.host}"


def endpoint(request: web.Request, port: int) -> str:
    """Return the base URL of a deployment's own address."""
    settings = request.app[keys.SETTINGS]
    # Replicas listen on the loopback address only, whatever name the API was called by.
    name = "127.0.0.1" if settings.is_loopback else urlsplit(_base(request)).hostname or ""
    host = f"[{name}]" if ":" in name else name
    return f"http://{host}:{port}"


def gateway(request: web.Request, environment: str) -> str:
    """Return the base URL of an environment on the API's own port."""
    return f"{_base(request)}/{environment}"
