"""Serves the OpenAPI document, and the page that shows it offline."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from server.api.edge import language_of
from server.api.openapi import document
from server.api.replies import dumps, reply
from server.messages import LANGUAGES

if TYPE_CHECKING:
    from server.settings import Settings

PAGE = Path(__file__).parent / "docs" / "index.html"


class Reference:
    """Serves ``GET /openapi.json`` and ``GET /docs``; everything is made ready at the start."""

    def __init__(self, settings: Settings) -> None:
        self._documents = {language: dumps(document(settings, language)) for language in LANGUAGES}
        self._page = PAGE.read_bytes()
        hashes = " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
            for script in re.findall(rb"<script>(.*?)</script>", self._page, re.DOTALL)
        )
        self._policy = (
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )

    async def openapi(self, request: web.Request) -> web.Response:
        """``GET /openapi.json``."""
        return reply(self._documents[language_of(request)])

    async def home(self, _request: web.Request) -> web.Response:
        """``GET /``: whoever opens the service's address wants to know what it is."""
        # Relative, for proxies that put a path before ours.
        return web.Response(status=302, headers={"Location": "docs"})

    async def docs(self, _request: web.Request) -> web.Response:
        """``GET /docs``."""
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
        }
        return web.Response(body=self._page, headers=headers)
