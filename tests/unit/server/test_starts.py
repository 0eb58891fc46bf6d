import asyncio

from server.reconcile.starts import Starts


async def test_no_more_start_at_once_than_there_are_places() -> None:
    starts, running, most = Starts(2), 0, 0

    async def start() -> None:
        nonlocal running, most
        async with starts.place():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(start() for _ in range(9)))

    assert most == 2


async def test_a_start_that_hangs_does_not_hold_up_the_others() -> None:
    starts = Starts(1, seconds=0.01)
    hanging = asyncio.Event()

    async def hang() -> None:
        async with starts.place():
            await hanging.wait()

    task = asyncio.create_task(hang())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        async with starts.place():
            assert not task.done()
    hanging.set()
    await task
    async with asyncio.timeout(10):
        async with starts.place():
            pass


async def test_a_place_is_given_back_once() -> None:
    starts, hanging = Starts(1, seconds=0.01), asyncio.Event()

    async def hang() -> None:
        async with starts.place():
            await hanging.wait()

    task = asyncio.create_task(hang())
    await asyncio.sleep(0.05)
    hanging.set()
    await task

    async with starts.place():
        waiting = asyncio.create_task(_enter(starts))
        done, _ = await asyncio.wait([waiting], timeout=0)
        assert not done
        waiting.cancel()


async def _enter(starts: Starts) -> None:
    async with starts.place():
        pass
