"""Tokens over HTTP: make one, list them, end one."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson

from server import keys
from server.api import parameters
from server.api.bodies import read_body
from server.api.callers import beyond, is_on_this_machine, owner_of, token_of
from server.api.multipart import MODEL_NAME
from server.api.replies import present, reply
from server.api.sessions import session_owner
from server.errors import ForbiddenError, InvalidRequestError, UnauthenticatedError
from server.pipeline.tokens import Wish
from server.states import Scope

if TYPE_CHECKING:
    from aiohttp import web

    from server.records import Token

MAX_NAME = 64
MAX_LIFETIME_SECONDS = 10 * 365 * 24 * 3600
MAX_BODY_BYTES = 16 * 1024
_FIELDS = ("name", "scope", "runId", "model", "expiresIn")


async def create(request: web.Request) -> web.Response:
    """``POST /tokens``: make a token and tell its secret, this once."""
    wish = wish_of(fields_of(await read_body(request, MAX_BODY_BYTES), _FIELDS))
    owner = await _maker(request, wish.scope)
    token, secret = await request.app[keys.TOKENS].make(owner, wish)
    return reply({**shown(token), "token": secret})


async def _maker(request: web.Request, scope: Scope) -> str:
    """Return the owner of the token that a caller may make.

    Raises:
        UnauthenticatedError: the caller is a stranger, so a token would be good for nothing.
        ForbiddenError: the caller may make none of that scope.
    """
    used = token_of(request)
    if used is None:
        owner = await session_owner(request)
        if owner is None:
            raise UnauthenticatedError("token_needs_session")
    elif used.scope is not Scope.API:
        raise beyond(used, Scope.API)
    elif scope is not Scope.INFERENCE:
        # One that leaked would live on in those that it made.
        raise ForbiddenError("token_makes_no_such", scope=scope)
    else:
        owner = used.owner
    if scope is Scope.METRICS and not is_on_this_machine(request):
        # Anybody can get a session by uploading; the figures are everybody's.
        raise ForbiddenError("only_from_this_machine")
    return owner


async def listing(request: web.Request) -> web.Response:
    """``GET /tokens``: the caller's tokens, newest first; no secrets."""
    found = request.app[keys.TOKENS].of(await owner_of(request))
    return reply({"tokens": [shown(token) for token in found]})


async def revoke(request: web.Request) -> web.Response:
    """``DELETE /tokens/{id}``: end a token at once."""
    owner = await owner_of(request)
    token_id = request.match_info["id"]
    # Strangers have none.
    await request.app[keys.TOKENS].revoke(token_id, owner=owner or "")
    return reply({"id": token_id})


def shown(token: Token) -> dict[str, Any]:
    """Return what people may see of a token."""
    return present(
        id=token.token_id,
        name=token.name,
        scope=token.scope,
        model=token.model,
        createdAt=token.created_at,
        lastUsedAt=token.used_at,
        expiresAt=token.expires_at,
    )


def fields_of(body: bytes, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a JSON object that have a value.

    One that is not known is refused: a limit with a misspelled name would be none.

    Raises:
        InvalidRequestError: it is no such object.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise InvalidRequestError("json_object_expected")
    for name in fields:
        if name not in known:
            raise InvalidRequestError("token_field_unknown", name=name, known=known)
    return {name: value for name, value in fields.items() if value is not None}


def wish_of(fields: dict[str, Any]) -> Wish:
    """Return the token that the fields of a request ask for.

    Raises:
        InvalidRequestError: one of them is missing or malformed, or they contradict each other.
    """
    name = fields.get("name")
    name = name.strip() if isinstance(name, str) else ""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise _malformed("name", f"string, 1-{MAX_NAME}")
    scope = fields.get("scope")
    if not isinstance(scope, str) or scope not in set(Scope):
        raise _malformed("scope", ", ".join(Scope))
    run_id, model = fields.get("runId"), fields.get("model")
    if run_id is not None:
        parameters.checked_run_id(str(run_id))
    if model is not None and not (isinstance(model, str) and MODEL_NAME.fullmatch(model)):
        raise InvalidRequestError("model_name_malformed", value=model)
    limits = [limit for limit in (run_id, model) if limit is not None]
    if len(limits) > 1 or (limits and scope != Scope.INFERENCE):
        raise InvalidRequestError("token_limit_misplaced")
    return Wish(
        name=name, scope=Scope(scope), run_id=run_id, model=model, lifetime=_lifetime(fields)
    )


def _lifetime(fields: dict[str, Any]) -> timedelta | None:
    seconds = fields.get("expiresIn")
    if seconds is None:
        return None
    if type(seconds) is not int or not 1 <= seconds <= MAX_LIFETIME_SECONDS:
        raise _malformed("expiresIn", f"1-{MAX_LIFETIME_SECONDS}")
    return timedelta(seconds=seconds)


def _malformed(name: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError("token_field_malformed", name=name, expected=expected)
