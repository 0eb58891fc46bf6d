"""Replicas are told of their tokens until they know; each here is named for how it listens."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from server.engines import admission
from server.engines.admission import Teller
from server.engines.base import EngineError

if TYPE_CHECKING:
    from server.records import Admitted


class Listens:
    def __init__(self) -> None:
        self.told: list[Admitted] = []
        self.used: list[str] = []
        self.tokens: Admitted = {"a": ("digest", None)}
        self.noted: list[str] = []

    async def tell(self, admitted: Admitted) -> tuple[int, bytes]:
        self.told.append(dict(admitted))
        used, self.used = self.used, []
        return 200, json.dumps({"used": used}).encode()

    def teller(self) -> Teller:
        return Teller(self.tell, lambda: self.tokens, self.noted.append)


class DoesNotListenAtFirst(Listens):
    silent = 3

    async def tell(self, admitted: Admitted) -> tuple[int, bytes]:
        if self.silent:
            self.silent -= 1
            raise EngineError("replica_silent")
        return await super().tell(admitted)


class NeverListens(Listens):
    async def tell(self, admitted: Admitted) -> tuple[int, bytes]:
        raise EngineError("replica_silent")


class AnswersNonsense(Listens):
    def __init__(self, status: int, body: bytes) -> None:
        super().__init__()
        self.answer = (status, body)

    async def tell(self, admitted: Admitted) -> tuple[int, bytes]:
        return self.answer


class IsSlow(Listens):
    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Event()
        self.released = asyncio.Event()

    async def tell(self, admitted: Admitted) -> tuple[int, bytes]:
        self.entered.set()
        await self.released.wait()
        return await super().tell(admitted)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_RETRY_SECONDS", 0.01)


async def test_a_change_is_known_when_it_was_told() -> None:
    replica = Listens()
    teller = replica.teller()
    await teller.renew(5)
    assert replica.told[-1] == {"a": ("digest", None)}
    replica.tokens = {}
    await teller.renew(5)
    assert replica.told[-1] == {}
    teller.close()


async def test_who_does_not_listen_is_told_again() -> None:
    replica = DoesNotListenAtFirst()
    teller = replica.teller()
    await teller.renew(20)
    assert replica.told == [{"a": ("digest", None)}]
    teller.close()


async def test_nobody_waits_for_ever_for_one_that_never_listens() -> None:
    teller = NeverListens().teller()
    with pytest.raises(EngineError):
        await teller.renew(0.05)
    teller.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"{}"), (200, b"[]"), (200, b"no"), (200, b'{"used": 1}'), (404, b'{"used": []}')],
)
async def test_nonsense_is_no_answer(status: int, body: bytes) -> None:
    teller = AnswersNonsense(status, body).teller()
    with pytest.raises(EngineError):
        await teller.renew(0.05)
    teller.close()


async def test_what_changes_while_a_replica_is_told_is_told_afterwards() -> None:
    replica = IsSlow()
    teller = replica.teller()
    await replica.entered.wait()
    replica.tokens = {}
    waiting = asyncio.create_task(teller.renew(20))
    await asyncio.sleep(0)
    replica.released.set()
    await waiting
    assert replica.told == [{"a": ("digest", None)}, {}]
    teller.close()


async def test_nobody_waits_for_a_replica_that_has_ended() -> None:
    teller = NeverListens().teller()
    waiting = asyncio.create_task(teller.renew(60))
    await asyncio.sleep(0)
    teller.close()
    await asyncio.wait_for(waiting, 20)
    await asyncio.sleep(0)
    await asyncio.wait_for(teller.renew(60), 20)


async def test_only_uses_of_tokens_that_it_was_told_are_believed() -> None:
    replica = Listens()
    teller = replica.teller()
    await teller.renew(5)
    replica.used = ["a", "b"]
    await teller.renew(5)
    assert replica.noted == ["a"]
    teller.close()
