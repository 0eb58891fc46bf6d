"""A page on another origin, in a real Chromium, drives the whole way as the Persephone UI does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from tests.support.browser import Browser, pages
from tests.support.onnx_files import linear
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

RUN_ID = r"[0-9a-f]{32}"
UNKNOWN = "0" * 32
RUSSIAN = re.compile(r"[А-Яа-яЁё]{3}")
SMALL_LIMIT = 65_536
STEPS = 7
ENVIRONMENTS = ("dev", "stage", "prod")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The browser, two services, and where the page lies.

    ``api`` offers the CPU as a device; ``bare`` does not, and takes small files only.
    """

    browser: Browser
    api: str
    bare: str
    page_port: int
    foreign_port: int

    async def open(
        self, api: str | None = None, *, host: str = "localhost", port: int | None = None
    ) -> Browser:
        """Open the page as a new visitor, on the UI's origin if nothing else is said."""
        url = f"http://{host}:{port or self.page_port}/?api={api or self.api}&pace=20"
        await self.browser.open(url)
        await self.browser.forget()
        await self.browser.reload()
        return self.browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    tmp_path_factory: pytest.TempPathFactory, environments: ModelEnvironments
) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("browser")
    browser = Browser(folder / "profile")
    async with pages(2) as (page, foreign):
        origins = f"http://localhost:{page},http://127.0.0.1:{page}"
        common = {"PERSEPHONE_CORS_ORIGINS": origins}
        offering = {**common, "PERSEPHONE_OFFER_CPU": "true"}
        small = {**common, "PERSEPHONE_MAX_UPLOAD_BYTES": str(SMALL_LIMIT)}
        async with (
            Service(environments.lend(folder / "data"), offering) as api,
            Service(environments.lend(folder / "bare"), small) as bare,
            browser,
        ):
            yield Stage(
                browser=browser,
                api=api.url.replace("127.0.0.1", "localhost"),
                bare=bare.url.replace("127.0.0.1", "localhost"),
                page_port=page,
                foreign_port=foreign,
            )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "модель.onnx"
    path.write_bytes(linear())
    return path


async def upload(browser: Browser, path: Path) -> str:
    await browser.choose_file("#file", path)
    await browser.click("#upload")
    return await browser.until("#run", RUN_ID)


async def refused(browser: Browser, path: Path) -> str:
    """Upload what is not taken; return what the page shows."""
    await browser.choose_file("#file", path)
    await browser.click("#upload")
    return await browser.until("#error", ".+")


async def counted(url: str, route: str, code: int) -> float:
    """Return how many requests of a route were answered with a status."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    found = re.findall(rf'_requests_total{{code="{code}",[^}}]*route="{route}"}} (\S+)', text)
    return sum(map(float, found))


async def predict(address: str, run_id: str, times: int) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    async with aiohttp.ClientSession() as session:
        for _ in range(times):
            url = f"{address}/v2/models/{run_id}/infer"
            async with session.post(url, json={"inputs": [tensor]}) as answer:
                body = await answer.json()
                assert answer.status == 200, body
                assert body["outputs"][0]["data"] == [6.25, 2.75]


async def test_the_page_ships_a_model_and_watches_it(stage: Stage, model: Path) -> None:
    browser = await stage.open()
    run_id = await upload(browser, model)
    assert await browser.text("#prepare-phase") == "Pending"
    assert await browser.run("return document.querySelectorAll('#steps li').length") == STEPS

    await browser.click("#start")
    # One environment for all tests is built at the first use, which may mean a download.
    await browser.until("#prepare-phase", "Succeeded|Failed", 600)
    statuses = await browser.run(
        "return [...document.querySelectorAll('#steps li')].map(item => item.dataset.status)"
    )
    assert statuses == ["Succeeded"] * STEPS, await browser.text("#steps")
    assert RUSSIAN.search(await browser.text("#steps"))

    for environment in ENVIRONMENTS:
        await browser.click(f"#deploy-{environment}")
    for environment in ENVIRONMENTS:
        row = f"#deployment-{environment}"
        await refreshed(browser, environment)
        assert await browser.text(f"{row} .version") == "1"
        assert await browser.run(f"return document.querySelector('{row}').dataset.environment") == (
            environment
        )

    status = await browser.ask("GET", f"/deploy/status?runId={run_id}&env=prod")
    await predict(status["body"]["endpoint"], run_id, 40)
    await browser.until("#rps", r"(?!0\.00)\d+\.\d\d", 30)
    assert await browser.text("#errorsPercent") == "0.00"
    assert await browser.text("#availability") == "100.00"
    assert float(await browser.text("#p95DurationMs")) > 0
    assert float(await browser.text("#latencyP95Ms")) > 0

    await browser.reload()
    assert await browser.until("#run", RUN_ID) == run_id
    await browser.until("#deployment-prod .phase", "Succeeded")
    await browser.until("#rps", r"\d+\.\d\d")
    assert await browser.text("#prepare-phase") == "Succeeded"
    assert await browser.text("#error") == ""


async def refreshed(browser: Browser, environment: str) -> None:
    """Press the refresh button until the roll-out is over, as a person does."""
    phase = f"#deployment-{environment} .phase"
    for _ in range(600):
        await browser.click(f"#refresh-{environment}")
        if await browser.text(phase) in {"Succeeded", "Failed"}:
            break
    assert await browser.text(phase) == "Succeeded", await browser.text("#deploy")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"/prepare/status?runId={UNKNOWN}", 404, "run_unknown"),
        ("GET", "/prepare/status", 400, "run_id_missing"),
        ("GET", "/monitor/summary?runId=../../etc", 400, "run_id_malformed"),
        ("POST", f"/deploy/start?runId={UNKNOWN}&env=moon", 400, "env_unknown"),
        ("GET", "/no/such/path", 404, "path_unknown"),
        ("DELETE", "/upload", 405, "method_not_allowed"),
        ("GET", "/prepare/start", 405, "method_not_allowed"),
        ("POST", "/upload", 400, "multipart_expected"),
        ("GET", "/dev/v2/models/nobody", 404, None),
    ],
)
async def test_a_page_on_another_origin_reads_why_a_request_failed(
    stage: Stage, method: str, path: str, status: int, code: str | None
) -> None:
    browser = await stage.open()

    outcome = await browser.ask(method, path)

    assert outcome.get("status") == status, outcome
    assert RUSSIAN.search(outcome["message"]), outcome
    assert outcome["requestId"] == outcome["body"]["requestId"]
    assert code in {None, outcome["body"]["code"]}


async def test_a_file_of_no_known_kind_is_refused_with_a_sentence(
    stage: Stage, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("hello, world\n" * 1000)
    browser = await stage.open()

    message = await refused(browser, path)

    assert RUSSIAN.search(message), message
    assert "ONNX" in message
    assert await browser.text("#run") == ""


@pytest.mark.parametrize("size", [SMALL_LIMIT + 1, 20 * 1024**2], ids=["by-a-byte", "by-far"])
async def test_a_file_that_is_too_large_is_refused_with_a_sentence(
    stage: Stage, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear() + bytes(size))
    browser = await stage.open(stage.bare)

    message = await refused(browser, path)

    assert RUSSIAN.search(message), message
    assert "0.0625" in message


async def test_start_stays_disabled_while_there_is_no_gpu(stage: Stage, model: Path) -> None:
    browser = await stage.open(stage.bare)
    run_id = await upload(browser, model)
    answer = await browser.ask("GET", f"/prepare/gpus?runId={run_id}")
    if answer["body"]:
        pytest.skip("this machine has a GPU")

    assert answer == {"status": 200, "body": []}
    assert not await browser.is_enabled("#start")
    await browser.click("#gpus")
    assert await browser.is_shown("#no-gpu")
    assert not await browser.is_enabled("#start")


async def test_an_offered_cpu_stands_last_and_enables_start(stage: Stage, model: Path) -> None:
    browser = await stage.open()
    await upload(browser, model)
    await browser.until("#gpu", ".+")

    offered = await browser.run(
        "return [...document.querySelector('#gpu').options].map(o=>o.value)"
    )

    assert offered[-1] == "cpu"
    assert await browser.run("return document.querySelector('#gpu').selectedIndex") == 0
    assert await browser.is_enabled("#start")
    assert not await browser.is_shown("#no-gpu")


async def test_a_run_is_unknown_to_another_visitor(stage: Stage, model: Path) -> None:
    browser = await stage.open()
    run_id = await upload(browser, model)
    path = f"/prepare/status?runId={run_id}"
    assert (await browser.ask("GET", path))["status"] == 200

    await browser.forget()

    assert (await browser.ask("GET", path))["status"] == 404


async def test_a_page_on_an_origin_that_is_not_allowed_neither_reads_nor_changes_anything(
    stage: Stage, model: Path
) -> None:
    browser = await stage.open()
    run_id = await upload(browser, model)
    before = await counted(stage.api, "/prepare/start", 403)

    # The same site, so the browser sends the visitor's cookie along.
    await browser.open(f"http://localhost:{stage.foreign_port}/?api={stage.api}")
    reading = await browser.ask("GET", f"/prepare/status?runId={run_id}")
    changing = await browser.ask("POST", f"/prepare/start?runId={run_id}&gpuId=cpu")

    assert reading == changing == {"blocked": True}
    assert await counted(stage.api, "/prepare/start", 403) == before + 1
    await browser.open(f"http://localhost:{stage.page_port}/?api={stage.api}")
    after = await browser.ask("GET", f"/prepare/status?runId={run_id}")
    assert after["body"]["phase"] == "Pending"


async def test_a_page_on_another_site_is_told_what_to_change(stage: Stage, model: Path) -> None:
    browser = await stage.open(host="127.0.0.1")

    message = await refused(browser, model)

    assert RUSSIAN.search(message), message
    assert "PERSEPHONE_COOKIE_SAMESITE" in message
    assert await browser.text("#run") == ""
