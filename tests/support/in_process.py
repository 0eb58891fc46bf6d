"""The whole service in the test's own process, where clocks and limits can be turned by hand."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from server.api.edge import make_runner
from server.app import create_app
from server.data_folder import DataFolder
from server.settings import Settings
from tests.support.service import Caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BOUNDARY = "b0undary"


@dataclass
class Here:
    """A running service, and a session with it."""

    app: web.Application
    caller: Caller
    port: int

    async def raw(
        self, local: str | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection, from another loopback address if one is named."""
        address = None if local is None else (local, 0)
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=address)

    async def begin_upload(
        self, content: bytes, length: int, cookie: str = ""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send the head and the first bytes of an upload that says to have ``length`` bytes."""
        reader, writer = await self.raw()
        writer.write(
            f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
            f"Cookie: {cookie}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
            f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=m\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        return reader, writer

    def cookie(self) -> str:
        """Return the session's Cookie header."""
        return "; ".join(f"{each.key}={each.value}" for each in self.caller.http.cookie_jar)


@asynccontextmanager
async def serving(data_dir: Path, **settings: Any) -> AsyncIterator[Here]:
    """Run the service on a data folder."""
    folder = DataFolder(data_dir)
    folder.open()
    app = create_app(Settings(data_dir=data_dir, **settings))
    runner = make_runner(app, shutdown_timeout=1, lingering_time=0.1)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with Caller(f"http://127.0.0.1:{port}") as caller:
            yield Here(app, caller, port)
    finally:
        await runner.cleanup()
        folder.close()
