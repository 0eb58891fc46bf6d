"""The operator's way in: a unix socket in the data folder, for who may read that folder.

``python -m server tokens`` talks to it, so that there is one writer of the database, and a
service that runs knows at once of what was made and revoked. Callers show a key that lies beside
the socket: some sandboxes keep a process from files and let it connect to any socket.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from server.api.errors import error_body, status_of
from server.api.replies import reply
from server.api.tokens import MAX_BODY_BYTES, fields_of, shown, wish_of
from server.errors import ForbiddenError, InvalidRequestError, PersephoneError
from server.states import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiohttp.typedefs import Handler

    from server.messages import Messages
    from server.pipeline.tokens import Tokens, Wish

SOCKET = "operator.sock"
_KEY = "operator.key"
_KEY_HEADER = "X-Operator-Key"
_FIELDS = ("name", "scope", "runId", "model", "expiresIn", "ownerOf")


@contextmanager
def opened(folder: Path) -> Iterator[Path]:
    """Open a data folder and name it briefly: the path of a socket has room for 107 bytes only."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def key_of(folder: Path) -> dict[str, str]:
    """Return the header that callers of the socket show."""
    return {_KEY_HEADER: (folder / _KEY).read_text(encoding="ascii")}


@asynccontextmanager
async def operator_socket(folder: Path, tokens: Tokens, messages: Messages) -> AsyncIterator[None]:
    """Answer on the socket of a data folder that the caller owns."""
    key = secrets.token_urlsafe(32)
    runner = web.AppRunner(_application(tokens, messages, key), access_log=None, shutdown_timeout=1)
    await runner.setup()
    with opened(folder) as near, socket.socket(socket.AF_UNIX) as listener:
        _remove(near)
        # The file that bind makes takes this over, so it is never open to others.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(near / SOCKET))
        listener.setblocking(False)
        (near / _KEY).touch(mode=0o600)
        (near / _KEY).write_text(key, encoding="ascii")
        try:
            await web.SockSite(runner, listener).start()
            yield
        finally:
            await runner.cleanup()
            _remove(near)


def _remove(near: Path) -> None:
    # One that was killed has left them.
    for name in (SOCKET, _KEY):
        (near / name).unlink(missing_ok=True)


def _owner(tokens: Tokens, wish: Wish, like: object) -> str:
    """Return whom a token of the operator's is to act for.

    Raises:
        InvalidRequestError: nobody has a model that it could predict with.
        NotFoundError: there is no run or token of that id.
    """
    some_id = like or wish.run_id
    if some_id is not None:
        return tokens.owner_behind(str(some_id))
    if wish.scope is Scope.INFERENCE:
        raise InvalidRequestError("token_needs_owner")
    # An owner of its own, who has nothing yet.
    return secrets.token_hex(16)


def _application(tokens: Tokens, messages: Messages, key: str) -> web.Application:
    @web.middleware
    async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            shown = request.headers.get(_KEY_HEADER, "")
            if not hmac.compare_digest(shown.encode("utf-8", "replace"), key.encode()):
                raise ForbiddenError("only_from_this_machine")
            return await handler(request)
        except PersephoneError as error:
            text = messages.render(error.code, error.params, "en")
            body = error_body(error.code, text, secrets.token_hex(8))
            return reply(body, status_of(type(error)))

    async def create(request: web.Request) -> web.Response:
        fields = fields_of(await request.read(), _FIELDS)
        wish = wish_of(fields)
        owner = _owner(tokens, wish, fields.get("ownerOf"))
        token, secret = await tokens.make(owner, wish)
        return reply({**shown(token), "token": secret})

    async def listing(_request: web.Request) -> web.Response:
        return reply({"tokens": [shown(token) for token in tokens.all()]})

    async def revoke(request: web.Request) -> web.Response:
        await tokens.revoke(request.match_info["id"])
        return reply({"id": request.match_info["id"]})

    app = web.Application(middlewares=[explain], client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/tokens", create)
    app.router.add_get("/tokens", listing)
    app.router.add_delete("/tokens/{id}", revoke)
    return app
