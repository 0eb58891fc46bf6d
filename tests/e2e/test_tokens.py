"""Tokens at a deployment's own address and at the gateway, with real replicas."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.client_environments import client_python
from tests.support.onnx_files import shifted
from tests.support.predictions import addresses
from tests.support.processes import replicas_of
from tests.support.service import Caller, Service, passing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SETTINGS = {"PERSEPHONE_INFERENCE_AUTH": "token", "PERSEPHONE_DRAIN_SECONDS": "1"}
ZEROS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}
TRITON = """
import sys
import numpy as np
import tritonclient.http as triton

address, name, token = sys.argv[1:]
tensor = triton.InferInput("x", [1, 2], "FP32")
tensor.set_data_from_numpy(np.zeros((1, 2), "f4"))
client = triton.InferenceServerClient(address)
headers = {"Authorization": f"Bearer {token}"}
print(client.get_model_metadata(name, headers=headers)["name"] == name)
print(client.infer(name, [tensor], headers=headers).as_numpy("y").flat[0])
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    environments: ModelEnvironments, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    await asyncio.to_thread(environments.python, "onnx")
    data_dir = environments.lend(tmp_path_factory.mktemp("tokens") / "data")
    async with Service(data_dir, SETTINGS) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def caller(service: Service) -> AsyncIterator[Caller]:
    async with passing(service.url) as one:
        yield one


class Program:
    """Predicts with one token on one kept connection."""

    def __init__(self, token: str | None) -> None:
        self.client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1),
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
        )

    async def predict(self, base: str, name: str) -> tuple[int, Any]:
        async with self.client.post(f"{base}/v2/models/{name}/infer", json=ZEROS) as answer:
            body = await answer.json()
            return answer.status, body.get("code") or body["outputs"][0]["data"][0]


@contextlib.asynccontextmanager
async def programs(*tokens: str | None) -> AsyncIterator[list[Program]]:
    made = [Program(token) for token in tokens]
    try:
        yield made
    finally:
        for program in made:
            await program.client.close()


async def token(caller: Caller, scope: str = "inference", **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = await caller.post("/tokens", json={"name": "x", "scope": scope, **more})
    return made


async def shipped(caller: Caller, value: float, model: str) -> dict[str, Any]:
    _, status = await caller.ship(shifted(value), model=model)
    return dict(status)


async def test_an_own_address_takes_tokens_for_its_model_and_nothing_else(caller: Caller) -> None:
    status = await shipped(caller, 1, "first")
    other = await shipped(caller, 2, "second")
    own, gateway = addresses(status)
    good = (await token(caller, runId=status["runId"]))["token"]
    named = (await token(caller, model="first"))["token"]
    for_other = (await token(caller, model="second"))["token"]
    general = (await token(caller))["token"]
    api = (await token(caller, "api"))["token"]
    metrics = (await token(caller, "metrics"))["token"]

    async with programs(good, named, for_other, general, api, metrics, None) as (
        *with_token,
        stranger,
    ):
        seen = [await program.predict(own, "first") for program in with_token]
        refused = (401, "inference_token_refused")
        assert seen == [(200, 1), (200, 1), refused, refused, refused, refused]
        assert await stranger.predict(own, "first") == (401, "inference_needs_identification")
        assert await with_token[2].predict(other["endpoint"], "second") == (200, 2)

        seen = [await program.predict(gateway, "first") for program in with_token]
        assert seen == [
            (200, 1),
            (200, 1),
            (403, "token_for_other_model"),
            (200, 1),
            (200, 1),
            (403, "token_scope_insufficient"),
        ]
        assert await stranger.predict(gateway, "first") == (401, "inference_needs_session")
    # The session's cookie is sent to every port of the host, and opens none of them.
    answered, body = await caller.call("POST", f"{own}/v2/models/first/infer", json=ZEROS)
    assert (answered, body["code"]) == (401, "inference_needs_identification")
    assert (await caller.call("POST", f"{gateway}/v2/models/first/infer", json=ZEROS))[0] == 200


async def test_a_revoked_token_is_over_when_the_answer_is_there(caller: Caller) -> None:
    status = await shipped(caller, 1, "first")
    for _ in range(5):
        made = await token(caller, model="first")
        async with programs(made["token"]) as [program]:
            for _ in range(3):
                assert await program.predict(status["endpoint"], "first") == (200, 1)
            assert (await caller.call("DELETE", f"/tokens/{made['id']}"))[0] == 200
            for base, code in zip(
                addresses(status), ("inference_token_refused", "token_revoked"), strict=True
            ):
                assert await program.predict(base, "first") == (401, code)


async def test_a_token_expires_at_both_addresses(caller: Caller) -> None:
    status = await shipped(caller, 1, "first")
    made = await token(caller, model="first", expiresIn=2)
    async with programs(made["token"]) as [program]:
        for base, code in zip(
            addresses(status), ("inference_token_refused", "token_expired"), strict=True
        ):
            async with asyncio.timeout(20):
                while (seen := await program.predict(base, "first")) == (200, 1):
                    await asyncio.sleep(0.02)
            assert seen == (401, code)


async def test_tokens_hold_over_versions_crashes_and_restarts(
    service: Service, caller: Caller
) -> None:
    status = await shipped(caller, 1, "first")
    good, gone = await token(caller, model="first"), await token(caller, model="first")
    await caller.call("DELETE", f"/tokens/{gone['id']}")
    own, name = status["endpoint"], "first"
    async with programs(good["token"], gone["token"]) as (friend, former):

        async def is_served(value: float) -> None:
            async with asyncio.timeout(30):
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        seen = await friend.predict(own, name)
                        if seen == (200, value):
                            break
                        # Never is who may predict told that it may not.
                        assert seen[0] == 503, seen
                    await asyncio.sleep(0.05)
            assert (await former.predict(own, name))[0] == 401

        await shipped(caller, 2, "first")
        await is_served(2)
        for process in replicas_of(service.data_dir):
            process.kill()
        await is_served(2)
        await service.kill()
        await service.start()
        await is_served(2)


async def test_every_replica_is_told(caller: Caller) -> None:
    run_id = await caller.upload(shifted(1), model="first")
    assert (await caller.prepare(run_id))["phase"] == "Succeeded"
    status = await caller.deploy(run_id, replicas=3)
    made = await token(caller, model="first")
    # Each on a connection of its own, which the replicas share among them.
    async with programs(*[made["token"]] * 12) as several:
        for program in several:
            assert await program.predict(status["endpoint"], "first") == (200, 1)
        await caller.call("DELETE", f"/tokens/{made['id']}")
        for program in several:
            assert (await program.predict(status["endpoint"], "first"))[0] == 401


async def test_uses_at_the_own_address_are_listed(caller: Caller) -> None:
    status = await shipped(caller, 1, "first")
    used = await token(caller, model="first")
    await token(caller, model="first")
    async with programs(used["token"]) as [program]:
        assert await program.predict(status["endpoint"], "first") == (200, 1)
    # Replicas are asked with every change, so nobody has to wait for half a minute.
    await token(caller, model="first")
    listed = (await caller.get("/tokens"))["tokens"]
    assert ["lastUsedAt" in one for one in listed[:3]] == [False, False, True]


async def test_a_program_with_a_token_needs_no_browser_from_upload_to_prediction(
    service: Service, caller: Caller
) -> None:
    await caller.upload(shifted(1))
    made = await token(caller, "api")
    async with Caller(service.url) as program:
        program.http.headers["Authorization"] = f"Bearer {made['token']}"
        run_id, status = await program.ship(shifted(5))
        assert len(program.http.cookie_jar) == 0
        infer = f"{status['gateway']}/v2/models/{run_id}/infer"
        assert (await program.post(infer, json=ZEROS))["outputs"][0]["data"][0] == 5
        assert (await program.get(f"/monitor/summary?runId={run_id}"))["runId"] == run_id

        python = await asyncio.to_thread(client_python, "tritonclient")
        for base, secret in (
            (status["gateway"], made["token"]),
            (status["endpoint"], (await token(program, runId=run_id))["token"]),
        ):
            client = await asyncio.create_subprocess_exec(
                *(python, "-c", TRITON, base.removeprefix("http://"), run_id, secret),
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await asyncio.wait_for(client.communicate(), 60)
            assert said.decode().split() == ["True", "5.0"]


async def test_no_secret_reaches_the_log_or_the_model(service: Service, caller: Caller) -> None:
    status = await shipped(caller, 1, "first")
    made = await token(caller, model="first")
    general = await token(caller, "api")
    async with programs(made["token"], general["token"]) as several:
        for program in several:
            for base in addresses(status):
                await program.predict(base, "first")
    log = service.log()
    for one in (made, general):
        assert one["token"] not in log
        for file in service.data_dir.rglob("*"):
            if file.is_file() and "environments" not in file.parts:
                assert one["token"].encode() not in file.read_bytes(), file
