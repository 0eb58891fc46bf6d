"""``python -m server tokens``: tokens without a browser, whether the service runs or not."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp

from server.api.operator import SOCKET, key_of, opened, operator_socket
from server.data_folder import DataFolder
from server.messages import Messages
from server.pipeline.tokens import Tokens
from server.setting_values import SettingsError
from server.states import Scope
from server.store.database import Database
from server.store.state import Store
from server.store.tokens import TokenStore

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from server.settings import Settings

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_DURATION = re.compile(r"(\d{1,9})([smhd]?)")
# A service that starts has the folder and does not answer yet.
_START_SECONDS = 15.0
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 10.0
_FOREIGN = "the data folder {} belongs to another user; run this as that user"
_COLUMNS = ("id", "scope", "name", "model", "createdAt", "lastUsedAt", "expiresAt")


class RefusedError(Exception):
    """A command is not carried out; the text says why and what to do."""


def add_to(commands: Any) -> None:
    """Add the commands to a parser's."""
    tokens = commands.add_parser("tokens", help="make, list and revoke tokens for programs")
    verbs = tokens.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create", help="make a token and print its secret, this once")
    create.add_argument("--name", required=True, help="what it is for, at most 64 characters")
    create.add_argument(
        "--scope",
        required=True,
        choices=[scope.value for scope in Scope],
        help="api: upload, prepare, deploy, predict; inference: predict; metrics: /metrics and /sd",
    )
    limit = create.add_mutually_exclusive_group()
    limit.add_argument("--run", metavar="RUN_ID", help="inference: only with this run's model")
    limit.add_argument("--model", help="inference: only with this model of --owner-of")
    create.add_argument(
        "--owner-of",
        metavar="ID",
        help="act for the owner of this run or token; without it an api token has an owner of its own",
    )
    create.add_argument(
        "--expires-in", metavar="TIME", type=_seconds, help="as in 3600, 12h or 90d; else never"
    )
    verbs.add_parser("list", help="list all tokens, without their secrets")
    verbs.add_parser("revoke", help="end a token at once").add_argument("id", metavar="ID")


def _seconds(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError
    return int(match[1]) * _UNITS[match[2] or "s"]


def run(settings: Settings, arguments: argparse.Namespace) -> None:
    """Carry out one command.

    Raises:
        RefusedError: it cannot be, or the service does not want to.
    """
    asyncio.run(_run(settings, arguments))


async def _run(settings: Settings, arguments: argparse.Namespace) -> None:
    try:
        async with _operator(settings) as session:
            await _carry_out(session, arguments)
    except PermissionError:
        raise RefusedError(_FOREIGN.format(settings.data_dir)) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or "too slow"
        raise RefusedError(f"the service does not answer: {reason}") from error


async def _carry_out(session: aiohttp.ClientSession, arguments: argparse.Namespace) -> None:
    if arguments.verb == "create":
        await _create(session, arguments)
    elif arguments.verb == "list":
        _print_table((await _call(session, "GET", "/tokens"))["tokens"])
    else:
        await _call(session, "DELETE", f"/tokens/{quote(arguments.id, safe='')}")
        sys.stderr.write("revoked\n")


async def _create(session: aiohttp.ClientSession, arguments: argparse.Namespace) -> None:
    wish = {
        "name": arguments.name,
        "scope": arguments.scope,
        "runId": arguments.run,
        "model": arguments.model,
        "expiresIn": arguments.expires_in,
        "ownerOf": arguments.owner_of,
    }
    made = await _call(session, "POST", "/tokens", json=wish)
    # The secret alone goes to stdout, so that it can be sent to a file.
    sys.stderr.write(f"id {made['id']}, scope {made['scope']}; the secret is not shown again:\n")
    sys.stdout.write(f"{made['token']}\n")


def _print_table(tokens: list[dict[str, Any]]) -> None:
    rows = [_COLUMNS, *([str(token.get(name, "-")) for name in _COLUMNS] for token in tokens)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


async def _call(session: aiohttp.ClientSession, method: str, path: str, **more: Any) -> Any:
    async with session.request(method, f"http://operator{path}", **more) as answer:
        body = await answer.json()
    if answer.status != 200:
        raise RefusedError(body["message"])
    return body


@asynccontextmanager
async def _operator(settings: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    """Reach the service that runs on the data folder, or stand in for one that does not."""
    folder = settings.data_dir
    if not folder.is_dir():
        raise RefusedError(
            f"there is no data folder {folder}; set PERSEPHONE_DATA_DIR to the service's"
        )
    async with AsyncExitStack() as kept:
        near = kept.enter_context(opened(folder))
        path = str(near / SOCKET)
        if not await _is_served(path):
            await _stand_in(settings, path, kept)
        connector = aiohttp.UnixConnector(path)
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        yield await kept.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=timeout, headers=key_of(near))
        )


async def _stand_in(settings: Settings, path: str, kept: AsyncExitStack) -> None:
    """Answer in place of the service, unless it answers after all: it may be starting."""
    folder = DataFolder(settings.data_dir)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if settings.data_dir.stat().st_uid != os.geteuid():
            # The service could not write the files that we would leave.
            raise RefusedError(_FOREIGN.format(settings.data_dir))
        try:
            folder.open()
            break
        except SettingsError as error:
            if await _is_served(path):
                return
            if time.monotonic() > deadline:
                raise RefusedError(str(error)) from error
        await asyncio.sleep(_POLL_SECONDS)
    kept.callback(folder.close)
    database = Database(settings.database)
    kept.push_async_callback(database.close)
    await database.open()
    store, tokens = Store(database), TokenStore(database)
    await store.open()
    await tokens.open()
    made = Tokens(store, tokens, _nobody_to_tell)
    await kept.enter_async_context(operator_socket(settings.data_dir, made, Messages()))


async def _nobody_to_tell(_owner: str, _model: str) -> None:
    """No replica runs."""


async def _is_served(path: str) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    writer.close()
    await writer.wait_closed()
    return True
