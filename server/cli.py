"""The command line: reads the settings, starts the service, says where it is."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import uvloop
from aiohttp import web

from server.announcement import announcement
from server.api.edge import make_runner
from server.app import create_app
from server.data_folder import DataFolder
from server.logs import configure_logs
from server.settings import Settings, SettingsError

_SHUTDOWN_SECONDS = 5.0


def main() -> int:
    """Run the service until SIGTERM or SIGINT; return its exit code."""
    try:
        settings = Settings.from_env(os.environ)
        folder = DataFolder(settings.data_dir)
        folder.open()
    except SettingsError as error:
        sys.stderr.write(f"persephone: {error}\n")
        return 2
    configure_logs(settings)
    try:
        return uvloop.run(_serve(settings))
    finally:
        folder.close()


async def _serve(settings: Settings) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    app = create_app(settings)
    runner = make_runner(app, shutdown_timeout=_SHUTDOWN_SECONDS)
    try:
        await runner.setup()
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024)
        await site.start()
    except OSError as error:
        sys.stderr.write(
            f"persephone: {settings.host}:{settings.port} cannot be listened on: "
            f"{error.strerror or error}; set PERSEPHONE_PORT to a free port\n"
        )
        await runner.cleanup()
        return 1
    try:
        sys.stdout.write(await announcement(app, *_address(runner)))
        sys.stdout.flush()
        await stopped.wait()
    finally:
        await runner.cleanup()
    return 0


def _address(runner: web.AppRunner) -> tuple[str, int]:
    host, port, *_ = runner.addresses[0]
    return str(host), int(port)
