"""Tokens on a real database, a clock that is turned by hand, and owners with runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from server.pipeline.tokens import Tokens, Wish
from server.records import Run
from server.states import Scope
from server.store.database import Database
from server.store.state import Store
from server.store.tokens import TokenStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.records import Token

OWNER = "somebody"
RUN = "0123456789abcdef" * 2
MODEL = "iris"


@dataclass
class Clock:
    now: datetime = datetime(2027, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **more: Any) -> None:
        self.now += timedelta(**more)


@dataclass(kw_only=True)
class Desk:
    """What a test needs of the tokens: themselves, their clock, and what replicas were told."""

    tokens: Tokens
    store: Store
    kept: TokenStore
    database: Database
    clock: Clock
    renewed: list[tuple[str, str]] = field(default_factory=list)

    async def make(
        self, scope: Scope = Scope.API, owner: str = OWNER, **more: Any
    ) -> tuple[Token, str]:
        return await self.tokens.make(owner, Wish(name="a token", scope=scope, **more))


def a_run(run_id: str = RUN, owner: str = OWNER, model: str = MODEL) -> Run:
    return Run(
        run_id=run_id,
        owner=owner,
        model=model,
        file_name="model.onnx",
        size_bytes=1,
        digest="d" * 64,
        created_at=datetime(2027, 1, 1, tzinfo=UTC),
    )


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    """Open the tokens in a folder, where one run of one owner is kept."""
    database = Database(f"sqlite+aiosqlite:///{folder / 'tokens.db'}")
    await database.open()
    store, kept = Store(database), TokenStore(database)
    await store.open()
    await kept.open()
    if RUN not in store.runs:
        await store.add_run(a_run())
    renewed: list[tuple[str, str]] = []

    async def renew(owner: str, model: str) -> None:
        renewed.append((owner, model))

    clock = Clock()
    try:
        yield Desk(
            tokens=Tokens(store, kept, renew, clock),
            store=store,
            kept=kept,
            database=database,
            clock=clock,
            renewed=renewed,
        )
    finally:
        await database.close()
