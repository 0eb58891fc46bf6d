"""Tokens: made for an owner, shown once, known again by their hash, ended at once."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from server.errors import ConflictError, NotFoundError, UnauthenticatedError
from server.records import Token, now
from server.states import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from server.records import Admitted, DeploymentKey
    from server.store.state import Store
    from server.store.tokens import TokenStore

PREFIX = "psk_"
MAX_TOKENS = 100
"""Of one owner; dead ones that are still remembered included."""
REMEMBERED = timedelta(days=30)
"""How long a dead token is still told from an unknown one."""

_ID_BYTES = 8
_SECRET_BYTES = 32
# The id is looked up, and the whole is compared: nothing secret is ever a key of a look-up.
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_FORM = re.compile(rf"{PREFIX}([0-9a-f]{{16}})_[A-Za-z0-9_-]{{43}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A token as it is asked for; ``run_id`` and ``model`` both limit it to one model."""

    name: str
    scope: Scope
    run_id: str | None = None
    model: str | None = None
    lifetime: timedelta | None = None


class Tokens:
    """The tokens of all owners.

    ``renew(owner, model)`` is told when other tokens than before are good for a model.
    """

    def __init__(
        self,
        store: Store,
        tokens: TokenStore,
        renew: Callable[[str, str], Awaitable[None]],
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._renew = renew
        self._clock = clock
        self._making = asyncio.Lock()

    def identify(self, secret: str) -> Token:
        """Return the token that a secret belongs to, and note its use.

        Raises:
            UnauthenticatedError: it is unknown, was revoked or has expired.
        """
        form = _FORM.fullmatch(secret)
        token = None if form is None else self._tokens.find(form[1])
        if token is None or not hmac.compare_digest(token.digest, _digest(secret)):
            raise UnauthenticatedError("token_unknown")
        at = self._clock()
        if token.revoked_at is not None:
            raise UnauthenticatedError("token_revoked", name=token.name)
        if token.is_expired(at):
            raise UnauthenticatedError("token_expired", name=token.name)
        self._tokens.used(token.token_id, at)
        return token

    async def make(self, owner: str, wish: Wish) -> tuple[Token, str]:
        """Make a token for an owner; return it with its secret, which nobody can tell again.

        Raises:
            NotFoundError: the owner has no such run or model.
            ConflictError: the owner has too many.
        """
        model = self._model_of(owner, wish)
        token_id = secrets.token_hex(_ID_BYTES)
        secret = f"{PREFIX}{token_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        async with self._making:
            at = self._clock()
            token = Token(
                token_id=token_id,
                digest=_digest(secret),
                owner=owner,
                name=wish.name,
                scope=wish.scope,
                model=model,
                created_at=at,
                expires_at=None if wish.lifetime is None else at + wish.lifetime,
            )
            await self._tokens.add(token, forget=self._room_for_one(owner, at))
        await self._tell(token)
        return token, secret

    def _model_of(self, owner: str, wish: Wish) -> str | None:
        if wish.run_id is not None:
            return self._store.run_of(wish.run_id, owner).model
        if wish.model is not None and not any(
            run.model == wish.model for run in self._store.runs_of(owner)
        ):
            raise NotFoundError("model_unknown_to_owner", name=wish.model)
        return wish.model

    def _room_for_one(self, owner: str, at: datetime) -> list[str]:
        """Return the tokens good for nothing that have to be forgotten before another is made."""
        own = self._tokens.of(owner)
        surplus = len(own) + 1 - MAX_TOKENS
        if surplus <= 0:
            return []
        dead = [token.token_id for token in own if not token.is_live(at) or self._is_orphan(token)]
        if len(dead) < surplus:
            raise ConflictError("too_many_tokens", limit=MAX_TOKENS)
        # The newest stand first.
        return dead[-surplus:]

    def _is_orphan(self, token: Token) -> bool:
        """Whether a token is for a model that bore its run's name and went with it, for good."""
        model = token.model
        return model is not None and _RUN_ID.fullmatch(model) is not None and not self._has(token)

    def _has(self, token: Token) -> bool:
        return any(run.model == token.model for run in self._store.runs_of(token.owner))

    def of(self, owner: str | None) -> list[Token]:
        """Return an owner's tokens that were not revoked, newest first."""
        return [token for token in self._tokens.of(owner or "") if token.revoked_at is None]

    def all(self) -> list[Token]:
        """Return everybody's tokens that were not revoked, newest first."""
        return [token for token in self._tokens.all() if token.revoked_at is None]

    def owners(self) -> set[str]:
        """Return the owners of the tokens that are good for something."""
        at = self._clock()
        return {token.owner for token in self._tokens.all() if token.is_live(at)}

    async def revoke(self, token_id: str, *, owner: str | None = None) -> None:
        """End a token, of any owner if none is named; it is good for nothing when this returns.

        Raises:
            NotFoundError: there is none of that id, or it is somebody else's.
        """
        token = self._tokens.find(token_id)
        if token is None or owner not in {None, token.owner}:
            raise NotFoundError("token_not_found")
        ended = await self._tokens.revoke(token_id, self._clock())
        if ended is None:
            raise NotFoundError("token_not_found")
        await self._tell(ended)

    def owner_behind(self, some_id: str) -> str:
        """Return the owner of a run or of a token.

        Raises:
            NotFoundError: there is none of that id.
        """
        found = self._store.runs.get(some_id) or self._tokens.find(some_id)
        if found is None:
            raise NotFoundError("owner_not_found", value=some_id)
        return found.owner

    async def _tell(self, token: Token) -> None:
        if token.scope is Scope.INFERENCE and token.model is not None:
            await self._renew(token.owner, token.model)

    def admitted(self, key: DeploymentKey) -> Admitted:
        """Return the tokens that a deployment's own address takes."""
        at = self._clock()
        return {
            token.token_id: (
                token.digest,
                None if token.expires_at is None else token.expires_at.timestamp(),
            )
            for token in self._tokens.of(key.owner)
            if token.scope is Scope.INFERENCE and token.model == key.model and token.is_live(at)
        }

    def used(self, token_id: str) -> None:
        """Note a use that a deployment's own address has seen."""
        self._tokens.used(token_id, self._clock())

    async def keep_house(self) -> None:
        """Write when tokens were used, and forget those that have been dead for long."""
        await self._tokens.keep_uses()
        await self._tokens.forget_dead(self._clock() - REMEMBERED)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
