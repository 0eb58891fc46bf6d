"""The command line: starts the service and says where it is; ``tokens`` is for its operator."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from server import token_commands
from server.announcement import announcement
from server.api.edge import make_runner
from server.app import create_app
from server.data_folder import DataFolder
from server.errors import PersephoneError
from server.logs import configure_logs, statement
from server.messages import Messages
from server.setting_values import SettingsError
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

_FINISH_SECONDS = 5.0
_SHUTDOWN_SECONDS = 1.0
_BACKLOG = 1024
_COLLECTOR_THRESHOLDS = (20_000, 20, 50)
_FILES = 65_536


def main(
    argv: Sequence[str] | None = None, *, create: Callable[[Settings], web.Application] = create_app
) -> int:
    """Run the service until SIGTERM or SIGINT, or one command; return the exit code."""
    arguments = _arguments(argv)
    try:
        settings = Settings.from_env(os.environ)
        if arguments.command is not None:
            return _command(settings, arguments)
        folder = DataFolder(settings.data_dir)
        folder.open()
    except SettingsError as error:
        _complain(str(error))
        return 2
    configure_logs(settings)
    raise_file_limit()
    try:
        return uvloop.run(_run(settings, create))
    finally:
        folder.close()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Without a command: start the service. Settings are environment variables.",
    )
    token_commands.add_to(parser.add_subparsers(dest="command", title="commands"))
    return parser.parse_args(argv)


def _command(settings: Settings, arguments: argparse.Namespace) -> int:
    try:
        token_commands.run(settings, arguments)
    except token_commands.RefusedError as error:
        _complain(str(error))
        return 1
    except (CommandError, SQLAlchemyError, PersephoneError, OSError) as error:
        _complain(_start_trouble(error))
        return 1
    return 0


def raise_file_limit() -> None:
    """Allow as many open files as there may be: connections, replicas and uploads all take some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _complain(sentence: str, settings: Settings | None = None) -> None:
    text = f"persephone: {sentence}\n"
    if settings is not None:
        text = statement(settings, __name__, text, logging.ERROR)
    sys.stderr.write(text)


async def _run(settings: Settings, create: Callable[[Settings], web.Application]) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    with contextlib.ExitStack() as kept:
        try:
            # First of all: a second service must not start replicas only to find its port taken.
            listeners = [kept.enter_context(each) for each in await _bind(settings)]
        except OSError as error:
            _complain(_port_trouble(settings, error), settings)
            return 1
        # Whoever is told our address needs the port that we got.
        settings = replace(settings, port=listeners[0].getsockname()[1])
        return await _serve(settings, create(settings), listeners, stopped)


async def _bind(settings: Settings) -> list[socket.socket]:
    """Take the API's port on every address of its host; nobody is listened to yet.

    Raises:
        OSError: the host is unknown, or the port cannot be had.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                bound.append(_bound(family, kind, protocol, address))
            except OSError as error:
                # A name may have an address of a family that this machine has switched off.
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                missing = error
        if missing is not None and not bound:
            raise missing
    except OSError:
        for each in bound:
            each.close()
        raise
    return bound


def _bound(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        # Connections of the time before a restart may still linger on the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _port_trouble(settings: Settings, error: OSError) -> str:
    name = "PORT" if error.errno in {errno.EADDRINUSE, errno.EACCES} else "HOST"
    hint = "a free port" if name == "PORT" else "an address of this machine"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return (
        f"{host}:{settings.port} cannot be listened on: {error.strerror or error}; "
        f"set PERSEPHONE_{name} to {hint}"
    )


async def _serve(
    settings: Settings,
    app: web.Application,
    listeners: Sequence[socket.socket],
    stopped: asyncio.Event,
) -> int:
    runner = make_runner(app, shutdown_timeout=_SHUTDOWN_SECONDS)
    try:
        try:
            await runner.setup()
        except (CommandError, SQLAlchemyError, PersephoneError, OSError) as error:
            _complain(_start_trouble(error), settings)
            return 1
        try:
            for listener in listeners:
                await web.SockSite(runner, listener, backlog=_BACKLOG).start()
        except OSError as error:
            _complain(_port_trouble(settings, error), settings)
            return 1
        _calm_collector()
        text = await announcement(app, *_address(runner))
        sys.stdout.write(statement(settings, __name__, text))
        sys.stdout.flush()
        await stopped.wait()
        logger.info("asked to end: requests under way are finished")
        await runner.finish(_FINISH_SECONDS)
    finally:
        await runner.cleanup()
    logger.info("ended")
    return 0


def _calm_collector() -> None:
    """Let the garbage collector pass over what lives as long as the service, and come less often.

    Requests that wait for each other look like garbage to its youngest generation: at 64
    connections through the gateway a tenth of the service's time went there.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)


def _start_trouble(error: Exception) -> str:
    if isinstance(error, CommandError):
        return (
            "the database was written by a newer version of the service; "
            "update this one, or restore the backup made before the upgrade"
        )
    if isinstance(error, SQLAlchemyError):
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        return f"the database cannot be used: {cause}; check PERSEPHONE_DATABASE_URL"
    if isinstance(error, PersephoneError):
        return Messages().render(error.code, error.params, "en")
    return f"the service cannot start: {error}"


def _address(runner: web.AppRunner) -> tuple[str, int]:
    host, port, *_ = runner.addresses[0]
    return str(host), int(port)
