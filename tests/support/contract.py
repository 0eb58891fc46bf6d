"""A service without model environments, and what the tests of its contract ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import pytest_asyncio

from tests.support import onnx_files
from tests.support.service import Caller, Service, without_gpus
from tests.support.shapes import assert_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

UNKNOWN = "0" * 32
MODEL = onnx_files.linear()
LIMIT = 200_000

ABOUT_RUNS = [
    ("POST", "/prepare/start", ""),
    ("GET", "/prepare/status", ""),
    ("GET", "/prepare/gpus", ""),
    ("POST", "/deploy/start", "&env=dev"),
    ("GET", "/deploy/status", "&env=dev"),
    ("POST", "/deploy/stop", "&env=dev"),
    ("GET", "/monitor/summary", ""),
    ("GET", "/monitor/series", ""),
]
about_runs = pytest.mark.parametrize(("method", "path", "more"), ABOUT_RUNS)
both_languages = pytest.mark.parametrize("language", ["ru", "en"])


class Answer(NamedTuple):
    """One answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: Any


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("contract")
    settings = {
        "PERSEPHONE_MAX_UPLOAD_BYTES": str(LIMIT),
        # Nobody listens there: environments fail at once, without any network.
        "PERSEPHONE_WHEEL_INDEX": "http://127.0.0.1:9/simple",
        "PERSEPHONE_WHEEL_LINKS": "",
        **without_gpus(folder),
    }
    async with Service(folder / "data", settings) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def caller(service: Service) -> AsyncIterator[Caller]:
    async with Caller(service.url) as one:
        yield one


async def ask(
    caller: Caller, method: str, path: str, language: str | None = None, **more: Any
) -> Answer:
    headers = {**more.pop("headers", {})}
    if language is not None:
        headers["Accept-Language"] = language
    async with caller.http.request(method, caller.url + path, headers=headers, **more) as answer:
        assert answer.content_type == "application/json"
        return Answer(answer.status, answer.headers, await answer.json())


async def refusal(
    caller: Caller, method: str, path: str, language: str | None = "en", **more: Any
) -> tuple[int, str, str]:
    """Ask for something that is refused; return status, code and message."""
    answer = await ask(caller, method, path, language, **more)
    assert answer.status >= 400, answer
    assert_error(answer.body, language)
    assert answer.headers["X-Request-Id"] == answer.body["requestId"]
    return answer.status, answer.body["code"], answer.body["message"]
