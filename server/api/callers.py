"""Who a request comes from: the owner of its token, or else of its session."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web
from multidict import istr

from server import keys
from server.api.sessions import ensure_session, owner_in, session_owner
from server.errors import ForbiddenError, InvalidRequestError, UnauthenticatedError
from server.pipeline.tokens import PREFIX
from server.records import Actor, acting
from server.settings import is_loopback_host
from server.states import Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.pipeline.tokens import Tokens
    from server.records import Token
    from server.store.sessions import Sessions

logger = logging.getLogger(__name__)

_AUTHORIZATION = istr("Authorization")
_SESSION = Actor("session")
_QUIET_SECONDS = 60.0
_ADDRESSES = 1024


class Attempts:
    """Notes tokens that are good for nothing: one line in the log per address and minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, tuple[float, int]] = {}

    def note(self, address: str, code: str) -> None:
        """Note one; nothing of the token itself is ever handed over."""
        now = self._clock()
        began, count = self._since.get(address, (-_QUIET_SECONDS, 0))
        if now - began < _QUIET_SECONDS:
            self._since[address] = (began, count + 1)
            return
        if len(self._since) >= _ADDRESSES:
            self._since.clear()
        self._since[address] = (now, 0)
        logger.warning("a token was refused (%s) for %s; %d more before", code, address, count)


ATTEMPTS = web.AppKey("token_attempts", Attempts)


def token_of(request: web.Request) -> Token | None:
    """Return the token that a request carries, or ``None`` if it carries none.

    Raises:
        UnauthenticatedError: the token is unknown, was revoked or has expired.
        InvalidRequestError: there are several.
    """
    headers = request.headers
    if _AUTHORIZATION not in headers:
        return None
    given = headers.getall(_AUTHORIZATION)
    if len(given) > 1:
        raise InvalidRequestError("parameter_repeated", name="Authorization")
    scheme, _, secret = given[0].partition(" ")
    if scheme.startswith(PREFIX):
        # Some versions of Prometheus leave the scheme out when they ask for discovery.
        secret = given[0]
    elif scheme.lower() != "bearer":
        # What a proxy asks of its users is no affair of ours.
        return None
    try:
        return request.app[keys.TOKENS].identify(secret.strip())
    except UnauthenticatedError as error:
        request.app[ATTEMPTS].note(request.remote or "", error.code)
        raise


async def owner_of(request: web.Request) -> str | None:
    """Return the owner that a request acts for, or ``None`` for a stranger.

    Raises:
        UnauthenticatedError, InvalidRequestError: as ``token_of``.
        ForbiddenError: the token is for something else.
    """
    token = token_of(request)
    if token is None:
        # Several requests of a connection share one context.
        acting.set(_SESSION)
        return await session_owner(request)
    acting.set(Actor("token", token.token_id))
    if token.scope is not Scope.API:
        raise beyond(token, Scope.API)
    return token.owner


async def ensure_owner(request: web.Request) -> str:
    """Return the owner that a request acts for; a stranger gets a new session.

    Raises:
        UnauthenticatedError, InvalidRequestError, ForbiddenError: as ``owner_of``, and as
            ``ensure_session``.
    """
    return await owner_of(request) or await ensure_session(request)


async def reachable(sessions: Sessions, tokens: Tokens) -> set[str | None]:
    """Return the owners that somebody can act for, by a session or by a token of any scope."""
    stored = await sessions.live(time.time())
    return {owner_in(data) for data in stored} | tokens.owners()


def beyond(token: Token, needed: Scope) -> ForbiddenError:
    """Return the error of a token that is not for this."""
    return ForbiddenError("token_scope_insufficient", scope=token.scope, needed=needed)


def is_on_this_machine(request: web.Request) -> bool:
    """Whether the caller is on the same machine, and not a proxy there."""
    settings = request.app[keys.SETTINGS]
    is_near = settings.is_loopback or is_loopback_host(request.remote or "")
    # Callers that come through a proxy of this machine look near, but not by the name they use.
    return is_near and (not settings.is_published or is_loopback_host(_called_by(request)))


def _called_by(request: web.Request) -> str:
    """Return the Host header without its port; of the request line it would be unchecked."""
    return urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""


def refuse_strangers(request: web.Request) -> None:
    """Let a request see the figures of everybody, in which run ids stand: they are secrets.

    Raises:
        UnauthenticatedError, InvalidRequestError: as ``token_of``.
        ForbiddenError: the caller is elsewhere and has no token for it.
    """
    token = token_of(request)
    if (token is not None and token.scope is Scope.METRICS) or is_on_this_machine(request):
        return
    if token is not None:
        raise beyond(token, Scope.METRICS)
    raise ForbiddenError("only_from_this_machine")
