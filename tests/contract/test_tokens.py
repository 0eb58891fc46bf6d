"""Tokens on a real SQLite file."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from server.errors import ConflictError, NotFoundError, UnauthenticatedError
from server.pipeline.tokens import MAX_TOKENS, REMEMBERED
from server.records import DeploymentKey
from server.states import Scope
from server.store import tables
from tests.support.tokens import MODEL, OWNER, RUN, Desk, a_run, desk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.records import Token

KEY = DeploymentKey(OWNER, MODEL, "dev")
FORM = re.compile(r"psk_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as made:
        yield made


def refused(here: Desk, secret: str) -> str:
    with pytest.raises(UnauthenticatedError) as raised:
        here.tokens.identify(secret)
    return raised.value.code


async def test_a_secret_is_told_once_and_only_its_hash_is_kept(here: Desk) -> None:
    token, secret = await here.make()

    assert FORM.fullmatch(secret)
    assert here.tokens.identify(secret).token_id == token.token_id
    async with here.database.read() as connection:
        [row] = (await connection.execute(select(tables.tokens))).mappings()
    assert row["digest"] == hashlib.sha256(secret.encode()).hexdigest()
    assert secret.rpartition("_")[2] not in str(dict(row))
    assert secret not in repr(token)


async def test_no_other_secret_is_taken_for_it(here: Desk) -> None:
    _, secret = await here.make()
    for other in ("", "psk_", secret[:-1], secret + "A", secret[:-1] + "é", secret.upper()):
        assert refused(here, other) == "token_unknown"
    changed = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    assert refused(here, changed) == "token_unknown"
    assert refused(here, f"psk_{'0' * 16}_{secret[-43:]}") == "token_unknown"


async def test_a_token_expires_at_its_time(here: Desk) -> None:
    _, secret = await here.make(lifetime=timedelta(hours=1))
    here.clock.pass_(minutes=59)
    here.tokens.identify(secret)
    here.clock.pass_(minutes=1)
    assert refused(here, secret) == "token_expired"
    assert [token.name for token in here.tokens.of(OWNER)] == ["a token"]


async def test_a_revoked_token_is_over_at_once_and_leaves_the_list(here: Desk) -> None:
    token, secret = await here.make()
    await here.tokens.revoke(token.token_id, owner=OWNER)
    assert refused(here, secret) == "token_revoked"
    assert here.tokens.of(OWNER) == []
    with pytest.raises(NotFoundError):
        await here.tokens.revoke(token.token_id, owner=OWNER)


async def test_nobody_revokes_somebody_elses(here: Desk) -> None:
    token, secret = await here.make()
    for owner in ("another", ""):
        with pytest.raises(NotFoundError):
            await here.tokens.revoke(token.token_id, owner=owner)
    assert here.tokens.identify(secret)
    await here.tokens.revoke(token.token_id)
    assert refused(here, secret) == "token_revoked"


async def test_a_restart_knows_tokens_and_when_they_were_used(tmp_path: Path) -> None:
    async with desk(tmp_path) as before:
        first, secret = await before.make()
        second, over = await before.make(lifetime=timedelta(days=1))
        await before.tokens.revoke(second.token_id)
        before.tokens.identify(secret)
        await before.tokens.keep_house()
    async with desk(tmp_path) as after:
        [token] = after.tokens.of(OWNER)
        assert (token.token_id, token.used_at) == (first.token_id, before.clock.now)
        assert after.tokens.identify(secret)
        assert refused(after, over) == "token_revoked"


async def test_a_use_shows_before_it_is_written(here: Desk) -> None:
    _, secret = await here.make()
    assert here.tokens.of(OWNER)[0].used_at is None
    here.clock.pass_(seconds=5)
    here.tokens.identify(secret)
    assert here.tokens.of(OWNER)[0].used_at == here.clock.now
    await here.kept.keep_uses()
    assert here.tokens.of(OWNER)[0].used_at == here.clock.now


async def test_a_token_for_a_run_is_good_for_its_model(here: Desk) -> None:
    token, _ = await here.make(Scope.INFERENCE, run_id=RUN)
    named, _ = await here.make(Scope.INFERENCE, model=MODEL)
    assert (token.model, named.model) == (MODEL, MODEL)


@pytest.mark.parametrize("limit", [{"run_id": "f" * 32}, {"model": "other"}])
async def test_nobody_gets_a_token_for_what_he_does_not_own(
    here: Desk, limit: dict[str, str]
) -> None:
    for owner in (OWNER, "another"):
        with pytest.raises(NotFoundError):
            await here.make(Scope.INFERENCE, owner, **limit)
    with pytest.raises(NotFoundError):
        await here.make(Scope.INFERENCE, "another", run_id=RUN)


async def test_an_address_takes_only_live_tokens_for_its_own_model(here: Desk) -> None:
    good, secret = await here.make(Scope.INFERENCE, run_id=RUN)
    ending, _ = await here.make(Scope.INFERENCE, model=MODEL, lifetime=timedelta(hours=1))
    gone, _ = await here.make(Scope.INFERENCE, model=MODEL)
    for scope in Scope:
        await here.make(scope)
    await here.tokens.revoke(gone.token_id)

    assert ending.expires_at is not None
    assert here.tokens.admitted(KEY) == {
        good.token_id: (hashlib.sha256(secret.encode()).hexdigest(), None),
        ending.token_id: (ending.digest, ending.expires_at.timestamp()),
    }
    here.clock.pass_(hours=1)
    assert set(here.tokens.admitted(KEY)) == {good.token_id}
    assert here.tokens.admitted(KEY._replace(owner="another")) == {}
    assert here.tokens.admitted(KEY._replace(model="other")) == {}


async def test_replicas_are_told_of_every_change_of_their_tokens_and_of_no_other(
    here: Desk,
) -> None:
    token, _ = await here.make(Scope.INFERENCE, run_id=RUN)
    assert here.renewed == [(OWNER, MODEL)]
    await here.tokens.revoke(token.token_id)
    assert here.renewed == [(OWNER, MODEL)] * 2
    for scope in Scope:
        other, _ = await here.make(scope)
        await here.tokens.revoke(other.token_id)
    assert here.renewed == [(OWNER, MODEL)] * 2


async def test_an_owner_has_a_limited_number_of_which_the_dead_are_forgotten_first(
    here: Desk,
) -> None:
    made: list[Token] = [(await here.make())[0] for _ in range(MAX_TOKENS)]
    with pytest.raises(ConflictError) as raised:
        await here.make()
    assert raised.value.code == "too_many_tokens"
    await here.make(owner="another")

    for token in made[3:5]:
        await here.tokens.revoke(token.token_id)
    await here.make()
    await here.make()
    with pytest.raises(ConflictError):
        await here.make()
    assert here.kept.find(made[3].token_id) is None
    assert len(here.tokens.of(OWNER)) == MAX_TOKENS


async def test_tokens_of_a_run_that_is_gone_make_room_but_not_those_of_a_named_model(
    here: Desk,
) -> None:
    other = "e" * 32
    await here.store.add_run(a_run(other, model=other))
    for run_id in (RUN, other):
        for _ in range(MAX_TOKENS // 2):
            await here.make(Scope.INFERENCE, run_id=run_id)
        await here.store.delete_run(run_id)
    for _ in range(MAX_TOKENS // 2):
        await here.make()
    with pytest.raises(ConflictError):
        await here.make()
    assert {token.model for token in here.tokens.of(OWNER)} == {None, MODEL}


async def test_the_dead_are_told_from_the_unknown_for_a_while(here: Desk) -> None:
    revoked, first = await here.make()
    _, second = await here.make(lifetime=timedelta(seconds=1))
    await here.tokens.revoke(revoked.token_id)
    here.clock.pass_(seconds=1)
    await here.tokens.keep_house()
    assert refused(here, first) == "token_revoked"
    here.clock.now += REMEMBERED
    await here.tokens.keep_house()
    assert (refused(here, first), refused(here, second)) == ("token_unknown", "token_expired")
    here.clock.pass_(seconds=1)
    await here.tokens.keep_house()
    assert refused(here, second) == "token_unknown"
    async with here.database.read() as connection:
        assert (await connection.execute(select(tables.tokens))).all() == []


async def test_an_owner_is_found_by_a_run_or_a_token(here: Desk) -> None:
    token, _ = await here.make(owner="another")
    assert here.tokens.owner_behind(RUN) == OWNER
    assert here.tokens.owner_behind(token.token_id) == "another"
    with pytest.raises(NotFoundError):
        here.tokens.owner_behind("f" * 32)
