"""Tokens, mirrored in memory: a request with one costs no I/O."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, insert, select, update

from server.store import rows
from server.store.tables import tokens

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from server.records import Token
    from server.store.database import Database


class TokenStore:
    """Every token there is, dead ones that are still remembered included."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writing = asyncio.Lock()
        self._tokens: dict[str, Token] = {}
        self._by_owner: dict[str, dict[str, Token]] = {}
        self._uses: dict[str, datetime] = {}

    async def open(self) -> None:
        """Read everything once."""
        query = select(tokens).order_by(tokens.c.created_at)
        async with self._database.read() as connection:
            for row in (await connection.execute(query)).mappings():
                self._keep(rows.token_record(dict(row)))

    def _keep(self, token: Token) -> None:
        self._tokens[token.token_id] = token
        self._by_owner.setdefault(token.owner, {})[token.token_id] = token

    def find(self, token_id: str) -> Token | None:
        """Return the token of that id."""
        return self._tokens.get(token_id)

    def all(self) -> list[Token]:
        """Return every token, newest first."""
        return [self._latest(token) for token in reversed(self._tokens.values())]

    def of(self, owner: str) -> list[Token]:
        """Return an owner's tokens, newest first."""
        return [self._latest(token) for token in reversed(self._by_owner.get(owner, {}).values())]

    def _latest(self, token: Token) -> Token:
        used = self._uses.get(token.token_id)
        return token if used is None else replace(token, used_at=used)

    async def add(self, token: Token, *, forget: Collection[str] = ()) -> None:
        """Keep a new token, and forget those of these ids."""
        async with self._writing:
            async with self._database.write() as connection:
                await _delete(connection, forget)
                await connection.execute(insert(tokens).values(rows.token_row(token)))
            self._drop(forget)
            self._keep(token)

    async def revoke(self, token_id: str, at: datetime) -> Token | None:
        """End a live token and return it; None if somebody else was faster."""
        async with self._writing:
            token = self._tokens.get(token_id)
            if token is None or token.revoked_at is not None:
                return None
            async with self._database.write() as connection:
                await connection.execute(
                    update(tokens)
                    .where(tokens.c.token_id == token_id)
                    .values(revoked_at=at.isoformat())
                )
            ended = replace(token, revoked_at=at)
            self._keep(ended)
            return ended

    def used(self, token_id: str, at: datetime) -> None:
        """Note a use; it is worth no transaction of its own."""
        self._uses[token_id] = at

    async def keep_uses(self) -> None:
        """Write the uses that were noted."""
        async with self._writing:
            uses = {key: at for key, at in self._uses.items() if key in self._tokens}
            if uses:
                async with self._database.write() as connection:
                    await connection.execute(
                        update(tokens)
                        .where(tokens.c.token_id == bindparam("id"))
                        .values(used_at=bindparam("at")),
                        [{"id": key, "at": at.isoformat()} for key, at in uses.items()],
                    )
            for key, at in uses.items():
                self._keep(replace(self._tokens[key], used_at=at))
            # What was used again in the meantime is for the next time.
            self._uses = {
                key: at
                for key, at in self._uses.items()
                if key in self._tokens and uses.get(key) != at
            }

    async def forget_dead(self, before: datetime) -> None:
        """Remove what expired or was revoked before a time."""
        ends = {
            token.token_id: token.revoked_at or token.expires_at for token in self._tokens.values()
        }
        dead = [key for key, end in ends.items() if end is not None and end < before]
        if not dead:
            return
        async with self._writing:
            async with self._database.write() as connection:
                await _delete(connection, dead)
            self._drop(dead)

    def _drop(self, ids: Collection[str]) -> None:
        for token_id in ids:
            token = self._tokens.pop(token_id, None)
            self._uses.pop(token_id, None)
            if token is None:
                continue
            own = self._by_owner[token.owner]
            own.pop(token_id)
            if not own:
                del self._by_owner[token.owner]


async def _delete(connection: AsyncConnection, ids: Collection[str]) -> None:
    if ids:
        doomed = delete(tokens).where(tokens.c.token_id == bindparam("id"))
        await connection.execute(doomed, [{"id": token_id} for token_id in ids])
