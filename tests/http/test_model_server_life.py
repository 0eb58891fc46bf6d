from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from server.model_server import batching, serve
from tests.support.model_replica import (
    HANGS,
    LEAVES,
    NO_MEMORY,
    NOT_A_NUMBER,
    RAISES,
    ROWS,
    RUN,
    RefusesToWarmUp,
    Running,
    compiled_messages,
    get,
    head,
    listening,
    running,
    specification,
    tensor,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.model_server.messages import Messages

REQUESTS = 'inference_requests_total{{code="{}"}}'


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Messages:
    return compiled_messages(tmp_path_factory.mktemp("locale"))


@pytest.fixture
async def replica(messages: Messages, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(messages, tmp_path) as one:
        yield one


async def test_what_a_model_raises_has_a_code_and_shows_no_path(replica: Running) -> None:
    status, body = await replica.infer([[RAISES, 0]])
    assert (status, body["code"]) == (500, "model_raised")
    assert "ValueError: cannot read" in body["message"]
    assert "/etc" not in body["message"]
    status, body = await replica.infer([[NO_MEMORY, 0]])
    assert (status, body["code"]) == (503, "model_out_of_memory")
    status, body = await replica.infer([[LEAVES, 0]])
    assert (status, body["code"]) == (500, "model_raised")
    status, body = await replica.infer([[NOT_A_NUMBER, 0]])
    assert (status, body["code"]) == (422, "output_not_finite")
    assert "twice" in body["message"]
    status, body = await replica.infer([[NOT_A_NUMBER, 0]], outputs=[{"name": "rows"}])
    assert status == 200


async def test_only_predictions_are_counted_and_by_their_class(replica: Running) -> None:
    await replica.infer(ROWS)
    await replica.infer(ROWS)
    await replica.infer(ROWS, name="other")
    await replica.infer([[RAISES, 0]])
    await get(replica, "/v2/models/other/infer")
    await get(replica, "/v2/health/ready")
    assert (await replica.order("/ready"))[0] == 200
    figures = await replica.figures()
    assert figures[REQUESTS.format("2xx")] == 2
    assert figures[REQUESTS.format("4xx")] == 1
    assert figures[REQUESTS.format("5xx")] == 1
    # The model was never run on the one that did not fit it, quick as its answer was.
    assert figures["inference_request_duration_seconds_count"] == 3
    assert figures["inference_requests_in_progress"] == 0
    assert figures["process_start_time_seconds"] > 1e9
    info = 'inference_model_info{framework="double",framework_version="1.0",digest="' + "d" * 64
    assert info + '"}' in figures
    assert all(name.startswith(("inference_", "process_start_time")) for name in figures)


async def test_a_request_under_way_shows_in_the_gauge_and_the_state(replica: Running) -> None:
    asking = asyncio.create_task(replica.infer([[HANGS, 0]]))
    assert await asyncio.to_thread(replica.model.entered.wait, 5)
    assert (await replica.figures())["inference_requests_in_progress"] == 1
    status, state = await replica.order("/state", "GET")
    assert status == 200
    assert (state["in_flight"], state["connections"], state["pid"]) == (1, 1, os.getpid())
    replica.model.released.set()
    assert (await asking)[0] == 200
    assert (await replica.order("/state", "GET"))[1]["in_flight"] == 0


async def test_a_hanging_prediction_is_504_and_a_late_return_heals(
    messages: Messages, tmp_path: Path
) -> None:
    async with running(messages, tmp_path, predict_seconds=0.2) as replica:
        status, body = await replica.infer([[HANGS, 0]])
        assert (status, body["code"]) == (504, "prediction_timed_out")
        assert "0.2" in body["message"]
        state = (await replica.order("/state", "GET"))[1]
        assert (state["stuck"], state["accepting"]) == (True, False)
        assert (await replica.order("/ready"))[1]["code"] == "replica_restarting"
        waiting = asyncio.create_task(replica.infer(ROWS))
        replica.model.released.set()
        # Its connection waited in the socket's queue and lost nothing.
        assert (await waiting)[0] == 200
        figures = await replica.figures()
        assert figures[REQUESTS.format("5xx")] == 1


async def test_a_prediction_that_never_returns_ends_the_replica_with_its_own_code(
    messages: Messages, tmp_path: Path
) -> None:
    async with running(messages, tmp_path, predict_seconds=0.2, grace_seconds=0.1) as replica:
        results = await asyncio.gather(
            replica.infer([[HANGS, 0]]), replica.infer([[HANGS, 0]]), replica.infer([[HANGS, 0]])
        )
        codes = sorted(body["code"] for _status, body in results)
        assert codes[0] == "prediction_timed_out"
        assert set(codes[1:]) <= {"replica_overloaded", "replica_restarting"}
        assert await replica.replica.wait() == serve.EXIT_STUCK


async def test_beyond_the_queue_is_503_with_retry_after(
    messages: Messages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        batching.Batcher.__init__,
        "__kwdefaults__",
        {
            **(batching.Batcher.__init__.__kwdefaults__ or {}),
            "limit": 2,
        },
    )
    async with running(messages, tmp_path) as replica:
        asking = [asyncio.create_task(replica.infer([[HANGS, 0]])) for _ in range(3)]
        assert await asyncio.to_thread(replica.model.entered.wait, 5)
        while (await replica.order("/state", "GET"))[1]["in_flight"] < 3:
            await asyncio.sleep(0.01)
        async with replica.client.post(
            f"{replica.address}/v2/models/shop/infer", json={"inputs": [tensor(ROWS)]}
        ) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert (await response.json())["code"] == "replica_overloaded"
        replica.model.released.set()
        assert [status for status, _ in await asyncio.gather(*asking)] == [200] * 3
        figures = await replica.figures()
        assert figures[REQUESTS.format("5xx")] == 1
        # The refusal was quick, and says nothing of how quick the model is.
        assert figures["inference_request_duration_seconds_count"] == 3


async def test_bodies_in_memory_are_bounded(messages: Messages, tmp_path: Path) -> None:
    async with running(messages, tmp_path, max_body_bytes=1000) as replica:
        stalled = []
        for _ in range(5):
            _reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
            writer.write(head(Content_Length="1000") + b" " * 900)
            stalled.append((_reader, writer))
        while (await replica.order("/state", "GET"))[1]["connections"] < 5:
            await asyncio.sleep(0.01)
        answers = [asyncio.create_task(reader.readline()) for reader, _ in stalled]
        done, waiting = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [b"HTTP/1.1 503 Service Unavailable\r\n"]
        for task in waiting:
            task.cancel()
        for _reader, writer in stalled:
            writer.close()


async def test_readiness_is_a_real_inference_with_the_passports_inputs(
    messages: Messages, tmp_path: Path
) -> None:
    warm = {"warmup": {"inputs": [{**tensor(ROWS), "source": "sample"}]}}
    async with running(messages, tmp_path, accept=False, passport=warm) as replica:
        assert await replica.order("/ready") == (200, {})
        assert replica.model.calls == 1
        assert (await replica.figures())[REQUESTS.format("2xx")] == 0
    bad = {"warmup": {"inputs": [{**tensor(ROWS), "datatype": "INT8"}]}}
    async with running(messages, tmp_path, accept=False, passport=bad) as replica:
        status, body = await replica.order("/ready")
        assert (status, body["code"]) == (503, "tensor_datatype")
    async with running(messages, tmp_path, model=RefusesToWarmUp()) as replica:
        status, body = await replica.order("/ready")
        assert (status, body["code"]) == (503, "model_raised")
        assert "no kernel image" in body["params"]["evidence"]


async def test_nothing_is_accepted_before_the_order(messages: Messages, tmp_path: Path) -> None:
    async with running(messages, tmp_path, accept=False) as replica:
        asking = asyncio.create_task(replica.infer(ROWS))
        assert not (await replica.order("/state", "GET"))[1]["accepting"]
        assert not asking.done()
        assert await replica.order("/accept") == (200, {})
        assert (await asking)[0] == 200
        assert (await replica.order("/elsewhere"))[0] == 404


async def test_draining_answers_kept_connections_and_closes_idle_ones_last(
    messages: Messages, tmp_path: Path
) -> None:
    body = json.dumps({"inputs": [tensor(ROWS)]}).encode()
    request = head(Content_Length=str(len(body))) + body
    async with running(messages, tmp_path, drain_seconds=0.5) as replica:
        kept = [await asyncio.open_connection("127.0.0.1", replica.port) for _ in range(3)]
        for reader, writer in kept:
            writer.write(request)
            top = await reader.readuntil(b"\r\n\r\n")
            assert b"Connection: close" not in top
            await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", top)[1]))  # type: ignore[index]
        asking = asyncio.create_task(replica.infer([[HANGS, 0]]))
        assert await asyncio.to_thread(replica.model.entered.wait, 5)
        draining = asyncio.create_task(replica.order("/drain"))
        while not (await replica.order("/state", "GET"))[1]["draining"]:
            await asyncio.sleep(0.01)
        assert (await replica.order("/accept"))[1]["code"] == "replica_drained"
        reader, writer = kept[0]
        writer.write(request)
        replica.model.released.set()
        answered = await reader.read()
        assert answered.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in answered
        reader, writer = kept[2]
        writer.write(request.replace(RUN.encode(), b"another-run"))
        moved = await reader.read()
        assert moved.startswith(b"HTTP/1.1 421")
        assert b'"model_moved"' in moved
        assert not draining.done()
        assert await kept[1][0].read() == b""
        assert (await asking)[0] == 200
        assert await draining == (200, {})
        state = (await replica.order("/state", "GET"))[1]
        assert (state["accepting"], state["in_flight"], state["connections"]) == (False, 0, 0)
        assert (await replica.order("/drain")) == (200, {})
        for _reader, writer in kept:
            writer.close()
        assert await replica.order("/exit") == (200, {})
        assert await replica.replica.wait() == 0


async def ask_without_end(address: str, stop: asyncio.Event, failures: list[str]) -> int:
    count = 0
    sent = {"inputs": [tensor(ROWS)]}
    async with aiohttp.ClientSession() as client:
        while not stop.is_set():
            try:
                async with client.post(f"{address}/v2/models/shop/infer", json=sent) as response:
                    answer = await response.json()
                    if response.status != 200:
                        failures.append(f"{response.status} {answer}")
            except aiohttp.ClientError as error:
                failures.append(repr(error))
            count += 1
    return count


async def test_a_hand_over_under_load_loses_no_request(messages: Messages, tmp_path: Path) -> None:
    shared = listening()
    failures: list[str] = []
    stop = asyncio.Event()
    address = f"http://127.0.0.1:{shared.getsockname()[1]}"
    served = 0.0
    async with contextlib.AsyncExitStack() as stack:
        old = await stack.enter_async_context(running(messages, tmp_path, shared=shared))
        clients = [asyncio.create_task(ask_without_end(address, stop, failures)) for _ in range(16)]
        for version in ("4", "5", "6"):
            new = await stack.enter_async_context(
                running(messages, tmp_path, shared=shared, accept=False, version=version)
            )
            assert await new.order("/ready") == (200, {})
            assert await new.order("/accept") == (200, {})
            assert await old.order("/drain") == (200, {})
            served += (await old.figures())[REQUESTS.format("2xx")]
            old = new
        stop.set()
        total = sum(await asyncio.gather(*clients))
        served += (await old.figures())[REQUESTS.format("2xx")]
    shared.close()
    assert failures == []
    assert total == served > 100


class Process:
    """A model process as the service starts it, with a double for its model."""

    def __init__(self, process: asyncio.subprocess.Process, control: Path, port: int) -> None:
        self.process = process
        self.address = f"http://127.0.0.1:{port}"
        self._control = control

    async def order(self, path: str, method: str = "POST") -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(str(self._control))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.request(method, f"http://control{path}") as response,
        ):
            return response.status, await response.json()


@contextlib.asynccontextmanager
async def started(folder: Path, model: str = "Doubler") -> AsyncIterator[Process]:
    program = textwrap.dedent(
        f"""
        import sys
        from tests.support.model_replica import {model} as Model
        from server.model_server import loading
        from server.model_server.__main__ import main

        def load(spec):
            print("a model that prints")
            model = Model()
            return model, model.load(spec.path, device=spec.device, threads=1)

        loading.load_model = load
        main(sys.argv[1:])
        """
    )
    spec = folder / "spec.json"
    spec.write_text(json.dumps(dataclasses.asdict(specification())))
    shared, control = listening(), socket.socket(socket.AF_UNIX)
    control.bind(str(folder / "control"))
    control.listen()
    with shared, control:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, "serve", "--spec", str(spec)),
            *("--listen-fd", str(shared.fileno()), "--control-fd", str(control.fileno())),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=(shared.fileno(), control.fileno()),
            cwd=Path(__file__).parents[2],
        )
        try:
            yield Process(process, folder / "control", shared.getsockname()[1])
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


@pytest.mark.parametrize("ending", ["exit", "sigterm"])
async def test_a_model_process_serves_drains_and_exits_with_zero(
    tmp_path: Path, ending: str
) -> None:
    async with started(tmp_path) as child, aiohttp.ClientSession() as client:
        while not (await child.order("/state", "GET"))[1]["loaded"]:
            await asyncio.sleep(0.05)
        assert await child.order("/ready") == (200, {})
        assert await child.order("/accept") == (200, {})
        sent = {"inputs": [tensor(ROWS)]}
        async with client.post(f"{child.address}/v2/models/shop/infer", json=sent) as response:
            assert response.status == 200
            assert (await response.json())["outputs"][0]["data"] == [2, 4, 6, 9]
        if ending == "exit":
            assert await child.order("/exit") == (200, {})
        else:
            child.process.send_signal(signal.SIGTERM)
        assert await child.process.wait() == 0
        assert child.process.stdout is not None
        assert await child.process.stdout.read() == b""


async def test_a_model_process_tells_why_its_model_does_not_load(tmp_path: Path) -> None:
    async with started(tmp_path, model="RefusesToLoad") as child:
        assert child.process.stdout is not None
        lines = (await child.process.stdout.read()).splitlines()
        assert [json.loads(line) for line in lines] == [
            {
                "event": "failed",
                "code": "model_load_failed",
                "params": {"found": "nothing"},
                "evidence": "one line",
            }
        ]
        assert await child.process.wait() == serve.EXIT_LOAD_FAILED
