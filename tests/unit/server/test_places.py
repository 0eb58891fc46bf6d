from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from server.errors import BusyError
from server.pipeline import places as module
from server.pipeline.places import SLOW_BYTES_PER_SECOND, DisplacedError, Place, Places

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.005)


@dataclass
class Body:
    """How a body arrives, set by hand."""

    received_bytes: int = 0
    waited_seconds: float = 0.0


async def held(stack: AsyncExitStack, places: Places, owner: str) -> Place:
    return await stack.enter_async_context(places.hold(owner))


async def test_places_are_held_up_to_the_limits_and_given_back() -> None:
    places = Places(per_owner=1, total=2)
    async with AsyncExitStack() as stack:
        await held(stack, places, "a")
        with pytest.raises(BusyError, match="quota_uploads") as caught:
            await held(stack, places, "a")
        assert (caught.value.params["used"], caught.value.params["limit"]) == (1, 1)
        await held(stack, places, "b")
        with pytest.raises(BusyError, match="quota_uploads_total"):
            await held(stack, places, "c")
    async with AsyncExitStack() as stack:
        for owner in "cd":
            await held(stack, places, owner)


async def test_whatever_ends_an_upload_its_place_is_free() -> None:
    places = Places(per_owner=1, total=1)
    for error in (ConnectionError, ValueError, TimeoutError):
        with pytest.raises(error):
            async with places.hold("a"):
                raise error
    task = asyncio.create_task(hold_on(places, "a", lambda: None))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    async with places.hold("a"):
        pass


async def hold_on(places: Places, owner: str, began: Callable[[], None]) -> None:
    async with places.hold(owner):
        began()
        await asyncio.sleep(60)


async def test_an_upload_waits_a_while_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 30.0)
    places = Places(per_owner=1, total=1)
    order: list[str] = []

    async def upload(owner: str) -> None:
        async with places.hold(owner):
            order.append(owner)
            await asyncio.sleep(0)

    async with places.hold("first"):
        waiting = [asyncio.create_task(upload(owner)) for owner in "abc"]
        await asyncio.sleep(0.01)
        assert order == []
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "c"]


async def test_who_is_over_his_own_limit_holds_up_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 30.0)
    places = Places(per_owner=1, total=3)
    async with places.hold("a"):
        second = asyncio.create_task(hold_on(places, "a", lambda: None))
        await asyncio.sleep(0.01)
        async with places.hold("b"):
            pass
        assert not second.done()
    second.cancel()
    await asyncio.wait([second])
    assert places._numbers("a") == (0, 0)


async def test_who_gives_up_waiting_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 30.0)
    places = Places(per_owner=1, total=1)
    async with places.hold("a"):
        waiting = asyncio.create_task(hold_on(places, "b", lambda: None))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert places._waiting == []
        late = asyncio.create_task(hold_on(places, "c", lambda: None))
        await asyncio.sleep(0.01)
    # Its place was granted in the very moment in which it gives up.
    late.cancel()
    await asyncio.wait([late])
    async with places.hold("d"):
        pass


async def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(module, "WAITING", 1)
    places = Places(per_owner=9, total=1)
    async with places.hold("a"):
        waiting = asyncio.create_task(hold_on(places, "b", lambda: None))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="quota_uploads_total"):
            async with places.hold("c"):
                pass
        waiting.cancel()
        await asyncio.wait([waiting])


async def displaced(places: Places, owner: str, body: Body | None) -> str:
    try:
        async with places.hold(owner) as place:
            place.arrival = body
            await asyncio.sleep(30)
    except DisplacedError as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    ("body", "is_displaced"),
    [
        (Body(received_bytes=100, waited_seconds=3.0), True),
        (Body(received_bytes=3 * SLOW_BYTES_PER_SECOND, waited_seconds=3.0), False),
        # Too early to tell.
        (Body(received_bytes=0, waited_seconds=1.0), False),
        # All has come, and our disk is slow.
        (Body(received_bytes=10**8, waited_seconds=3.0), False),
        (None, False),
    ],
)
async def test_who_creeps_loses_his_place_to_those_who_wait(
    body: Body | None, *, is_displaced: bool
) -> None:
    places = Places(per_owner=1, total=1)
    creeping = asyncio.create_task(displaced(places, "a", body))
    await asyncio.sleep(0)
    if is_displaced:
        async with places.hold("b"):
            pass
        assert await creeping == "body_too_slow"
    else:
        with pytest.raises(BusyError):
            async with places.hold("b"):
                pass
        creeping.cancel()
        await asyncio.wait([creeping])


async def test_nobody_is_displaced_as_long_as_there_are_places() -> None:
    places = Places(per_owner=1, total=2)
    creeping = asyncio.create_task(displaced(places, "a", Body(0, 1000.0)))
    await asyncio.sleep(0)
    async with places.hold("b"):
        await asyncio.sleep(0.01)
    assert not creeping.done()
    creeping.cancel()
    await asyncio.wait([creeping])


async def test_a_fast_upload_that_stops_is_found_by_what_came_since_the_last_look() -> None:
    body = Body(received_bytes=10**8, waited_seconds=3.0)
    place = Place("a", asyncio.timeout(None))
    place.arrival = body
    assert not place.is_slow()
    body.waited_seconds += 1.9
    assert not place.is_slow()
    body.waited_seconds += 0.1
    assert place.is_slow()
