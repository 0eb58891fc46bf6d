"""What happened to a run, over HTTP: events, their replay and their streams; tags of polls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp.test_utils import make_mocked_request

from server.api import events, streams
from server.records import Event, now
from server.store import events as kept_events
from tests.support.engines import until
from tests.support.service import Caller
from tests.support.told import MODEL, STREAM, World, codes, following, telling, told
from tests.support.weightless import Model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ORIGIN = "http://localhost:3000"
STREAMS_PER_OWNER = 3


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with telling(tmp_path, max_streams_per_owner=STREAMS_PER_OWNER) as made:
        yield made


# ── events


async def test_the_way_of_a_model_is_told_with_who_did_it(world: World) -> None:
    run_id = await world.deployed()
    token = await world.caller.post("/tokens", json={"name": "ci", "scope": "api"})
    bearer = {"Authorization": f"Bearer {token['token']}"}
    await world.caller.post(f"/deploy/stop?runId={run_id}&env=dev", headers=bearer)
    await until(lambda: not world.service.machine.serving)
    await until(lambda: world.service.store.deployments_of(run_id)[0].serving_version is None)

    events = await world.events(run_id)

    assert codes(events) == [
        *("uploaded", "preparation_started", *["step_done"] * 7, "prepared"),
        *("deploy_wanted", "serving", "stop_wanted", "stopped"),
    ]
    by = {event["code"].removeprefix("event_"): event["by"] for event in events}
    wishes = {"uploaded", "preparation_started", "deploy_wanted"}
    assert {code for code, who in by.items() if who == "session"} == wishes
    [stop] = [event for event in events if event["by"] == "token"]
    assert (stop["code"], stop["tokenId"]) == ("event_stop_wanted", token["id"])
    numbers = [event["sequence"] for event in events]
    assert numbers == sorted(set(numbers))
    assert all("{" not in event["message"] for event in events)
    assert await world.events(run_id, f"?after={numbers[-2]}") == events[-1:]
    russian = await world.caller.get(f"/runs/{run_id}/events", headers={"Accept-Language": "ru"})
    assert russian["events"][0]["message"].startswith("Файл")
    status = await world.caller.get(f"/deploy/status?runId={run_id}&env=dev")
    assert status["sequence"] == russian["sequence"] == numbers[-1]


async def test_a_failed_step_a_crash_and_a_hand_over_are_told(world: World) -> None:
    failed = await world.upload(Model.UNLOADABLE)
    await world.caller.prepare(failed, "cpu")
    last = (await world.events(failed))[-1]
    assert (last["code"], last["step"], last["reason"]) == (
        *("event_step_failed", "load", "out_of_memory"),
    )
    assert "memory" in last["message"]

    run_id = await world.deployed()
    world.service.machine.serving[0].crash("signal 9")
    await until(lambda: "serving_again" in told(world, run_id))
    status = f"/deploy/status?runId={run_id}&env=dev"
    await world.caller.until(status, lambda body: body["phase"] == "Succeeded")
    await world.caller.deploy(run_id)
    events = await world.events(run_id)
    assert codes(events)[-5:] == [
        *("serving", "replica_crashed", "serving_again", "deploy_wanted", "handed_over")
    ]
    assert events[-4]["reason"] == "replica_ended"
    assert "signal 9" in events[-4]["message"]


async def test_a_stream_goes_on_and_ends_with_the_run(world: World) -> None:
    run_id = await world.upload()
    async with following(world, run_id) as stream:
        await until(lambda: codes(stream.got) == ["uploaded"])
        await world.caller.prepare(run_id, "cpu")
        await until(lambda: codes(stream.got)[-1:] == ["prepared"])
        assert stream.got == await world.events(run_id)
        assert stream.ids == [event["sequence"] for event in stream.got]
        await world.caller.call("DELETE", f"/runs/{run_id}")
        await asyncio.wait_for(stream.task, 20)
        assert stream.ended
    assert (await world.caller.call("GET", f"/runs/{run_id}/events", headers=STREAM))[0] == 404


@pytest.mark.parametrize("is_kill", [True, False])
async def test_who_comes_back_after_a_restart_misses_nothing_and_gets_nothing_twice(
    world: World, is_kill: bool
) -> None:
    run_id = await world.upload()
    world.service.machine.hold()
    got: list[dict[str, Any]] = []
    async with following(world, run_id) as stream:
        await world.caller.post(f"/prepare/start?runId={run_id}&gpuId=cpu")
        await until(lambda: codes(stream.got)[-1:] == ["step_done"])
        await (world.cut() if is_kill else world.service.restart())
        world.caller.url = world.service.url
        await asyncio.wait_for(stream.task, 20)
        assert not stream.ended
        got += stream.got
    world.service.machine.let_go()
    await world.caller.until(f"/prepare/status?runId={run_id}", lambda s: s["phase"] != "Running")
    await world.caller.deploy(run_id)

    async with following(world, run_id, got[-1]["sequence"]) as stream:
        await until(lambda: codes(stream.got)[-1:] == ["serving"])
        got += stream.got

    assert got == await world.events(run_id)
    assert codes(got).count("preparation_resumed") == 1
    assert codes(got).count("uploaded") == 1


async def test_deployments_are_told_of_a_restart(world: World) -> None:
    run_id = await world.deployed()
    await world.cut()
    await until(lambda: told(world, run_id)[-1] == "serving_again")
    assert told(world, run_id)[-2:] == ["service_restarted", "serving_again"]


async def test_streams_end_at_once_with_the_service(world: World) -> None:
    run_id = await world.upload()
    async with (
        following(world, run_id) as stream,
        world.open(f"/runs/{run_id}/logs?follow=true") as logs,
    ):
        await until(lambda: stream.got)
        await world.service.restart()
        await asyncio.wait_for(stream.task, 20)
        assert await asyncio.wait_for(logs.read(), 20) == b""


async def test_who_comes_back_to_events_that_are_gone_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_events, "MOST_EVENTS", 3)
    run_id = await world.upload()
    path = f"/runs/{run_id}/events"
    first = (await world.caller.get(path))["sequence"]
    await world.caller.prepare(run_id, "cpu")

    newest = (await world.caller.get(path))["sequence"]
    assert (await world.caller.get(f"{path}?after={first}"))["gap"] is True
    for query in ("", f"?after={newest - 1}"):
        assert "gap" not in await world.caller.get(path + query)
    gap = b'retry: 3000\n\nevent: gap\ndata: {"after":%d}\n\nid: ' % first
    for after, head in ((first, gap), (newest - 1, b"retry: 3000\n\nid: ")):
        async with world.open(path, **{"Last-Event-ID": str(after)}) as answer:
            assert await asyncio.wait_for(answer.content.readuntil(b"id: "), 5) == head


async def test_a_stream_of_events_ends_at_last_without_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(events._EventStream, "longest_seconds", 0.05)
    run_id = await world.upload()
    async with following(world, run_id) as stream:
        await asyncio.wait_for(stream.task, 5)
        assert (codes(stream.got), stream.ended) == (["uploaded"], False)


async def test_many_events_are_shown_with_turns_for_others(world: World) -> None:
    crash = Event(run_id="a" * 32, code="event_replica_crashed", at=now())
    request = make_mocked_request("GET", "/", app=world.service.app)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    shown = await events.all_shown(request, [crash] * 1000)
    task.cancel()
    assert len(shown) == 1000
    assert turns >= 1000 // events._AT_ONCE - 1


async def test_a_stream_ends_with_its_token(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(streams, "_LOOK_SECONDS", 0.01)
    run_id = await world.upload()
    token = await world.caller.post("/tokens", json={"name": "ci", "scope": "api"})
    bearer = {"Authorization": f"Bearer {token['token']}"}
    path = f"/runs/{run_id}/logs?follow=true"
    async with world.open(path, **bearer) as of_token, world.open(path) as of_session:
        await asyncio.sleep(0.2)
        world.say(run_id, "before")
        for answer in (of_token, of_session):
            line = await asyncio.wait_for(answer.content.readline(), 20)
            assert line.endswith(b"before\n")
        await world.caller.call("DELETE", f"/tokens/{token['id']}")
        assert await asyncio.wait_for(of_token.read(), 20) == b""
        world.say(run_id, "after")
        line = await asyncio.wait_for(of_session.content.readline(), 20)
        assert line.endswith(b"after\n")


WRONG_NUMBERS = (
    ("?after=-1", {}, "after"),
    ("?after=x", {}, "after"),
    ("?after=1000000000000000000", {}, "after"),
    ("?after=", {}, "after"),
    ("?after=1&after=2", {}, "after"),
    ("", {"Last-Event-ID": "first"}, "Last-Event-ID"),
)


async def test_a_number_that_is_none_is_refused(world: World) -> None:
    run_id = await world.upload()
    for query, headers, name in WRONG_NUMBERS:
        for accept in ("application/json", "text/event-stream"):
            status, body = await world.caller.call(
                "GET", f"/runs/{run_id}/events{query}", headers={**headers, "Accept": accept}
            )
            assert status == 400
            assert body["code"] in {"parameter_malformed", "parameter_repeated"}
            assert name in body["message"]


async def test_only_the_owner_is_told(world: World) -> None:
    run_id = await world.deployed()
    async with Caller(world.service.url) as other:
        await other.upload(MODEL)
        for path in ("events", "logs", "passport", "support-bundle", "logs?follow=true"):
            for headers in ({}, STREAM):
                foreign = await other.call("GET", f"/runs/{run_id}/{path}", headers=headers)
                unknown = await other.call("GET", f"/runs/{'0' * 32}/{path}", headers=headers)
                assert foreign[0] == unknown[0] == 404
                assert foreign[1]["code"] == unknown[1]["code"] == "run_unknown"
            odd = await other.call("GET", f"/runs/nonsense/{path}")
            assert odd[1]["code"] == "run_id_malformed"


async def test_an_owner_has_so_many_streams_and_places_come_back(world: World) -> None:
    run_id = await world.upload()
    opened = [
        await world.open(f"/runs/{run_id}/{path}")
        for path in ("events", "logs?follow=true", "events")
    ]
    path = f"/runs/{run_id}/events"
    status, body = await world.caller.call("GET", path, headers=STREAM)
    assert (status, body["code"]) == (429, "quota_streams")
    assert await world.events(run_id)
    opened[0].close()

    async def is_free() -> bool:
        async with world.open(path) as answer:
            return answer.status == 200

    for _ in range(100):
        if await is_free():
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("the place did not come back")
    for answer in opened[1:]:
        answer.close()


async def test_the_service_has_so_many_streams(tmp_path: Path) -> None:
    async with telling(tmp_path, max_streams=1) as world, Caller(world.service.url) as other:
        run_id, path = await world.upload(), "/runs/{}/events"
        async with world.open(path.format(run_id)):
            foreign = path.format(await other.upload(MODEL))
            status, body = await other.call("GET", foreign, headers=STREAM)
            assert (status, body["code"]) == (429, "quota_streams_total")


async def test_a_head_of_a_stream_ends(world: World) -> None:
    run_id = await world.upload()
    for path in ("events", "logs?follow=true"):
        url = f"{world.caller.url}/runs/{run_id}/{path}"
        async with world.caller.http.head(url, headers=STREAM) as answer:
            assert answer.status == 200


# ── tags


async def test_an_unchanged_status_is_not_sent_again(world: World) -> None:
    run_id = await world.deployed()
    for path in (
        f"/prepare/status?runId={run_id}",
        f"/deploy/status?runId={run_id}&env=dev",
        "/runs",
        f"/runs/{run_id}/events",
        f"/runs/{run_id}/passport",
    ):
        url, headers = world.caller.url + path, {"Origin": ORIGIN}
        async with world.caller.http.get(url, headers=headers) as answer:
            body, tag = await answer.json(), answer.headers["ETag"]
            assert answer.headers["Cache-Control"] == "private, no-cache"
            exposed = answer.headers["Access-Control-Expose-Headers"].split(",")
            assert "ETag" in exposed
        for known in (tag, f'W/{tag}, "other"', f'"other", {tag}', "*"):
            asked = {**headers, "If-None-Match": known}
            async with world.caller.http.get(url, headers=asked) as answer:
                assert answer.status == 304
                assert await answer.read() == b""
                assert answer.headers["ETag"] == tag
                assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        for known in ('"other"', tag[:-1], ""):
            asked = {"If-None-Match": known}
            assert await world.caller.get(path, headers=asked) == body
        asked = {"If-None-Match": tag, "Accept-Language": "ru"}
        if "message" in str(body):
            assert await world.caller.get(path, headers=asked) != body


async def test_a_change_makes_another_tag(world: World) -> None:
    run_id = await world.upload()
    path = f"/prepare/status?runId={run_id}"

    async def tag() -> str:
        async with world.caller.http.get(world.caller.url + path) as answer:
            return str(answer.headers["ETag"])

    before = await tag()
    assert await tag() == before
    await world.caller.prepare(run_id, "cpu")
    prepared = await tag()
    assert prepared != before
    # Nothing of the preparation itself changes here, but its number does.
    await world.caller.deploy(run_id)
    assert await tag() not in {before, prepared}


async def test_events_that_are_known_are_not_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await world.upload()
    url = f"{world.caller.url}/runs/{run_id}/events"
    async with world.caller.http.get(url) as answer:
        tag = answer.headers["ETag"]
        assert {"Accept", "Last-Event-ID"} <= set(answer.headers["Vary"].split(", "))

    async def read(*_: Any) -> list[Any]:
        raise AssertionError("the database was asked")

    with monkeypatch.context() as patched:
        patched.setattr(world.service.store.events, "page", read)
        async with world.caller.http.get(url, headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304
    for other in ({"Accept-Language": "ru"}, {"Last-Event-ID": "1"}):
        headers = {"If-None-Match": tag, **other}
        async with world.caller.http.get(url, headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers["ETag"] != tag
    await world.caller.prepare(run_id, "cpu")
    async with world.caller.http.get(url, headers={"If-None-Match": tag}) as answer:
        assert answer.status == 200


async def test_a_page_may_send_a_tag_and_the_last_id(world: World) -> None:
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "if-none-match,last-event-id",
    }
    url = f"{world.caller.url}/runs/{'0' * 32}/events"
    async with world.caller.http.options(url, headers=headers) as answer:
        assert answer.status == 200
        allowed = answer.headers["Access-Control-Allow-Headers"].upper()
        assert "IF-NONE-MATCH" in allowed
        assert "LAST-EVENT-ID" in allowed
