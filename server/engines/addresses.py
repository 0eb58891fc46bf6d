"""The deployments' own addresses: listening sockets that outlive every replica."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import struct
from typing import TYPE_CHECKING

from server.engines.base import NO_PORT_LEFT, EngineError
from server.engines.shares import Shares
from server.machine import explained

if TYPE_CHECKING:
    from collections.abc import Collection

    from aiohttp import web

_BACKLOG = 1024
# The shortest there is. Whether the socket blocks is shared with model processes, who may change it
# and take a connection before us: then to accept it would hold up the whole service. This they
# cannot change.
_AT_ONCE = struct.pack("ll", 0, 1)
_BIND_TRIES = 20
_BIND_PAUSE_SECONDS = 0.1


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of the time before a restart may still linger on the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _AT_ONCE)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def bind_if_free(host: str, port: int) -> socket.socket | None:
    """Bind a port, unless it cannot be had now."""
    try:
        return _bind(host, port)
    except OSError:
        return None


async def bind_again(host: str, port: int) -> socket.socket | None:
    """Bind a port that was had before; None if another program has it, after some tries.

    Raises:
        EngineError: the address cannot be had for another cause.
        OSError: the machine has none to give.
    """
    for attempt in range(_BIND_TRIES):
        if attempt:
            await asyncio.sleep(_BIND_PAUSE_SECONDS)
        try:
            return _bind(host, port)
        except OSError as error:
            if explained(error) is not None:
                raise
            if error.errno != errno.EADDRINUSE:
                raise EngineError("port_unusable", port=port, evidence=str(error)) from error
    return None


def bind_free(host: str, ports: tuple[int, int], used: Collection[int]) -> socket.socket:
    """Bind a port of the range that nobody has.

    Raises:
        EngineError: every port of the range is taken.
        OSError: the machine has none to give.
    """
    low, high = ports
    span = high - low + 1
    start = random.randrange(span)  # noqa: S311 - spreads, protects nothing
    for offset in range(span):
        port = low + (start + offset) % span
        if port in used:
            continue
        try:
            return _bind(host, port)
        except OSError as error:
            if explained(error) is not None:
                # The next port would say the same.
                raise
    raise EngineError(NO_PORT_LEFT, low=low, high=high)


class Address:
    """One deployment's listening socket, what its replicas share, and who answers without them."""

    def __init__(self, listener: socket.socket, port: int, doorman: web.Server) -> None:
        self.listener = listener
        self.port = port
        self.shares = Shares()
        self._doorman = doorman
        self._attending: asyncio.Server | None = None

    @property
    def listens_on(self) -> int:
        """The port that was had; another than ``port`` while that one is taken."""
        return int(self.listener.getsockname()[1])

    async def move(self, listener: socket.socket) -> None:
        """Listen elsewhere; who inherited the old socket goes on with it."""
        await self.attend(nobody_home=False)
        self.listener.close()
        self.listener = listener

    async def attend(self, *, nobody_home: bool) -> None:
        """Accept here, or leave the connections to the replicas."""
        if nobody_home and self._attending is None:
            loop = asyncio.get_running_loop()
            self._attending = await loop.create_server(
                self._doorman, sock=self.listener.dup(), backlog=_BACKLOG
            )
        elif not nobody_home and self._attending is not None:
            attending, self._attending = self._attending, None
            attending.close()
            self._doorman.pre_shutdown()
            await self._doorman.shutdown(1)

    async def close(self) -> None:
        """Stop listening."""
        await self.attend(nobody_home=False)
        self.listener.close()
        self.shares.close()
