"""Tokens on the real service, which users reach by a name of its own: so nobody is near by default."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import pytest
import pytest_asyncio

from tests.support import onnx_files
from tests.support.prometheus_server import free_port
from tests.support.service import ROOT, Caller, Service, without_gpus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = onnx_files.linear()
AFAR = {"Host": "models.example"}
TOKEN = re.compile(r"psk_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


class Published(Service):
    """Says its public name when it is ready; behind that is a port of this machine."""

    async def start(self) -> Self:
        await super().start()
        self.url = f"http://127.0.0.1:{self.url.rsplit(':', 1)[1]}"
        return self


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("tokens")
    port = free_port()
    settings = {
        "PERSEPHONE_PORT": str(port),
        "PERSEPHONE_PUBLIC_URL": f"http://models.example:{port}",
        **without_gpus(folder),
    }
    async with Published(folder / "data", settings) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def session(service: Service) -> AsyncIterator[Caller]:
    """A browser with a run of its own."""
    async with Caller(service.url) as one:
        await one.upload(MODEL, model="iris")
        yield one


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def made(caller: Caller, scope: str = "api", **more: Any) -> Any:
    return await caller.post("/tokens", json={"name": "ci", "scope": scope, **more})


async def code(caller: Caller, method: str, path: str, **more: Any) -> tuple[int, str]:
    status, body = await caller.call(method, path, **more)
    assert {"message", "requestId"} <= set(body)
    return status, body["code"]


async def command(service: Service, *words: str) -> tuple[int, str, str]:
    """Run ``python -m server tokens`` on the service's data folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PERSEPHONE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "server", "tokens", *words),
        env={**clean, "PYTHONPATH": str(ROOT), "PERSEPHONE_DATA_DIR": str(service.data_dir)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


# ── whom a token acts for


async def test_a_token_acts_for_the_session_that_made_it(service: Service, session: Caller) -> None:
    token = await made(session)
    assert TOKEN.fullmatch(token["token"])
    async with Caller(service.url) as program:
        program.http.headers.update(bearer(token["token"]))
        run_id = await program.upload(MODEL)
        for one in (program, session):
            assert (await one.get("/runs"))["runs"][0]["runId"] == run_id
            assert (await one.get(f"/prepare/status?runId={run_id}"))["phase"] == "Pending"
        assert len(program.http.cookie_jar) == 0
        assert (await program.call("DELETE", f"/runs/{run_id}"))[0] == 200


async def test_a_token_wins_over_a_cookie(service: Service, session: Caller) -> None:
    token = await made(session)
    async with Caller(service.url) as other:
        run_id = await other.upload(MODEL)
        assert [run["runId"] for run in (await other.get("/runs"))["runs"]] == [run_id]
        theirs = await other.get("/runs", headers=bearer(token["token"]))
        assert run_id not in [run["runId"] for run in theirs["runs"]]
        # No falling back to the cookie either.
        assert await code(other, "GET", "/runs", headers=bearer("psk_nonsense")) == (
            401,
            "token_unknown",
        )
        assert (await other.get("/runs", headers={"Authorization": "Basic dTpw"}))["runs"]


async def test_a_foreign_page_changes_nothing_with_a_token_either(session: Caller) -> None:
    headers = bearer((await made(session))["token"])
    for foreign in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        status, _ = await code(session, "POST", "/tokens", headers={**headers, **foreign})
        assert status == 403


# ── what a token is for


async def test_a_token_is_for_its_scope_only(session: Caller) -> None:
    run_id = (await session.get("/runs"))["runs"][0]["runId"]
    limited = (await made(session, "inference", runId=run_id))["token"]
    metrics = (await made(session, "metrics"))["token"]
    for token in (limited, metrics):
        for method, path in (
            ("GET", "/runs"),
            ("GET", "/tokens"),
            ("POST", "/upload"),
            ("DELETE", f"/runs/{run_id}"),
            ("POST", f"/prepare/start?runId={run_id}"),
        ):
            refused = await code(session, method, path, headers=bearer(token))
            assert refused == (403, "token_scope_insufficient"), path
    for token, expected in (
        (limited, (404, "model_not_deployed")),
        (metrics, (403, "token_scope_insufficient")),
    ):
        asked = await code(session, "GET", "/dev/v2/models/iris", headers=bearer(token))
        assert asked == expected
    asked = await code(session, "GET", "/dev/v2/models/rose", headers=bearer(limited))
    assert asked == (403, "token_for_other_model")


async def test_figures_are_for_metrics_tokens_and_this_machine(session: Caller) -> None:
    metrics = bearer((await made(session, "metrics"))["token"])
    general = bearer((await made(session))["token"])
    for path in ("/metrics", "/sd", "/sd/replicas/nobody/metrics"):
        asked = await code(session, "GET", path, headers=AFAR)
        assert asked == (403, "only_from_this_machine")
        asked = await code(session, "GET", path, headers={**AFAR, **general})
        assert asked == (403, "token_scope_insufficient")
        asked = await code(session, "GET", path, headers={**AFAR, **bearer("psk_x")})
        assert asked == (401, "token_unknown")
        async with session.http.get(session.url + path, headers={**AFAR, **metrics}) as answer:
            assert answer.status == (404 if "nobody" in path else 200)
    assert await session.get("/sd", headers=metrics) == []
    bare = {"Authorization": metrics["Authorization"].removeprefix("Bearer ")}
    assert await session.get("/sd", headers={**AFAR, **bare}) == []


# ── who makes them


async def test_who_may_make_which_token(service: Service, session: Caller) -> None:
    async def making(caller: Caller, scope: str, **headers: str) -> tuple[int, Any]:
        status, body = await caller.call(
            "POST", "/tokens", json={"name": "x", "scope": scope}, headers=headers
        )
        return status, body.get("code")

    async with Caller(service.url) as stranger:
        assert await making(stranger, "api") == (401, "token_needs_session")
        assert await stranger.get("/tokens") == {"tokens": []}
    assert await making(session, "metrics", **AFAR) == (403, "only_from_this_machine")
    assert await making(session, "api", **AFAR) == (200, None)

    general = bearer((await made(session))["token"])
    assert await making(session, "inference", **general) == (200, None)
    for scope in ("api", "metrics"):
        assert await making(session, scope, **general) == (403, "token_makes_no_such")
    limited = bearer((await made(session, "inference"))["token"])
    assert await making(session, "inference", **limited) == (403, "token_scope_insufficient")


async def test_a_request_for_a_token_has_to_be_clear(session: Caller) -> None:
    async def making(**more: Any) -> tuple[int, str]:
        return await code(session, "POST", "/tokens", **more)

    assert await making(data=b"x") == (400, "json_object_expected")
    assert await making(json={"name": "x"}) == (400, "token_field_malformed")
    good = {"name": "x", "scope": "inference"}
    assert await making(json={**good, "x": 1}) == (400, "token_field_unknown")
    assert await making(json={**good, "runId": "f" * 32}) == (404, "run_unknown")
    assert await making(json={**good, "model": "rose"}) == (404, "model_unknown_to_owner")
    both = {"runId": "f" * 32, "model": "rose"}
    assert await making(json={**good, **both}) == (400, "token_limit_misplaced")
    assert await making(data=b" " * 20_000) == (413, "body_too_large")


async def test_the_list_has_everything_but_secrets(session: Caller) -> None:
    first = await made(session, expiresIn=3600)
    second = await made(session, "inference", model="iris")
    await session.get("/runs", headers=bearer(first["token"]))

    async with session.http.get(session.url + "/tokens") as answer:
        text = await answer.text()
        listed = (await answer.json())["tokens"]

    assert [one["id"] for one in listed] == [second["id"], first["id"]]
    assert set(listed[0]) == {"id", "name", "scope", "model", "createdAt"}
    assert set(listed[1]) == {"id", "name", "scope", "createdAt", "lastUsedAt", "expiresAt"}
    assert not TOKEN.search(text)


async def test_a_revoked_token_is_over_at_once(service: Service, session: Caller) -> None:
    token = await made(session)
    async with Caller(service.url) as other:
        gone = await code(other, "DELETE", f"/tokens/{token['id']}")
        assert gone == (404, "token_not_found")
    headers = bearer(token["token"])
    assert await session.get("/runs", headers=headers)
    status, body = await session.call("DELETE", f"/tokens/{token['id']}", headers=headers)
    assert (status, body) == (200, {"id": token["id"]})
    assert await code(session, "GET", "/runs", headers=headers) == (401, "token_revoked")
    again = await code(session, "DELETE", f"/tokens/{token['id']}")
    assert again == (404, "token_not_found")


async def test_a_refusal_says_how_to_come_in(session: Caller) -> None:
    async with session.http.get(session.url + "/runs", headers=bearer("x")) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="persephone"'


# ── the operator


async def test_the_operator_makes_and_revokes_tokens_while_the_service_runs(
    service: Service,
) -> None:
    status, out, err = await command(service, "create", "--name", "ci", "--scope", "api")
    assert status == 0, err
    token = out.removesuffix("\n")
    assert TOKEN.fullmatch(token)
    async with Caller(service.url) as program:
        program.http.headers.update(bearer(token))
        await program.upload(MODEL)
        [own] = (await program.get("/tokens"))["tokens"]
        assert (await command(service, "revoke", own["id"]))[0] == 0
        assert await code(program, "GET", "/runs") == (401, "token_revoked")


async def test_only_the_operator_reaches_its_socket(service: Service) -> None:
    for name in ("operator.sock", "operator.key"):
        assert (service.data_dir / name).stat().st_mode & 0o777 == 0o600
    connector = aiohttp.UnixConnector(str(service.data_dir / "operator.sock"))
    async with aiohttp.ClientSession(connector=connector) as intruder:
        for headers in ({}, {"X-Operator-Key": "x"}, {"X-Operator-Key": "é"}):
            async with intruder.get("http://operator/tokens", headers=headers) as answer:
                assert (answer.status, (await answer.json()).get("tokens")) == (403, None)


# ── over a restart


async def test_tokens_survive_a_kill_and_are_made_while_nothing_runs(
    service: Service, session: Caller
) -> None:
    before = (await made(session))["token"]
    await session.get("/runs", headers=bearer(before))
    await service.kill()
    status, out, err = await command(service, "create", "--name", "x", "--scope", "metrics")
    assert status == 0, err
    await service.start()

    async with session.http.get(
        session.url + "/metrics", headers={**AFAR, **bearer(out.strip())}
    ) as answer:
        assert answer.status == 200
    assert (await session.get("/runs", headers=bearer(before)))["runs"]


async def test_no_secret_stands_in_any_log_nor_file(service: Service, session: Caller) -> None:
    token = (await made(session))["token"]
    await session.call("GET", f"/runs?token={token}", headers=bearer(token))
    await session.call("GET", f"/{token}")
    await session.call("DELETE", f"/tokens/{token}")
    await session.call("GET", "/runs", headers={"X-Request-Id": token[-40:], **bearer(token)})
    for _ in range(5):
        await session.call("GET", "/runs", headers=bearer(token[:-1] + "!"))

    log = service.log()
    assert "DELETE /tokens/psk_… 404" in log
    assert "a token was refused (token_unknown) for 127.0.0.1" in log
    assert not TOKEN.search(log)
    for file in service.data_dir.rglob("*"):
        if file.is_file():
            assert token.encode() not in file.read_bytes(), file


async def test_a_token_that_is_none_is_refused_just_where_the_document_says_that_one_is_read(
    session: Caller,
) -> None:
    run_id = (await session.get("/runs"))["runs"][0]["runId"]
    values = {"env": "dev", "name": "iris", "version": "1", "target": "a.b", "id": run_id}
    values["runId"] = run_id
    wishes = {"createToken": {"name": "x", "scope": "api"}, "replaceObjectives": {"objectives": {}}}
    document = await session.get("/openapi.json")
    wrong = []
    for path, item in document["paths"].items():
        for method, made in item.items():
            query = {one["name"] for one in made.get("parameters", []) if one["in"] == "query"}
            async with session.http.request(
                method,
                session.url + path.format_map(values),
                params={name: values[name] for name in query & values.keys()},
                json=wishes.get(made["operationId"]),
                headers=bearer("psk_nothing"),
                allow_redirects=False,
            ) as answer:
                is_read = answer.status == 401
                if is_read != ("security" in made) or str(answer.status) not in made["responses"]:
                    wrong.append((method, path, answer.status))
    assert wrong == []
