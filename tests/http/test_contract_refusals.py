"""The contract of the page on the real service, as far as it needs no model environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support import contract
from tests.support.contract import LIMIT, MODEL, UNKNOWN, about_runs, both_languages, refusal
from tests.support.service import Caller, Service
from tests.support.shapes import (
    assert_prepare_status,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

service, caller = contract.service, contract.caller

# ── parameters


@both_languages
@about_runs
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", (400, "run_id_missing")),
        ("runId=", (400, "run_id_missing")),
        ("runId=abc", (400, "run_id_malformed")),
        ("runId=" + "A" * 32, (400, "run_id_malformed")),
        ("runId=" + "0" * 33, (400, "run_id_malformed")),
        ("runId=..%2F..%2Fetc%2Fpasswd%00", (400, "run_id_malformed")),
        ("runId=%F0%9F%92%A9", (400, "run_id_malformed")),
        (f"runId={UNKNOWN}&runId={UNKNOWN}", (400, "parameter_repeated")),
        (f"runId={UNKNOWN}", (404, "run_unknown")),
    ],
)
async def test_a_run_id_that_means_nothing_explains_itself(
    query: str,
    expected: tuple[int, str],
    method: str,
    path: str,
    more: str,
    language: str,
    caller: Caller,
) -> None:
    assert (await refusal(caller, method, f"{path}?{query}{more}", language))[:2] == expected


@about_runs
async def test_a_foreign_run_and_an_unknown_one_answer_the_same(
    method: str, path: str, more: str, service: Service, caller: Caller
) -> None:
    run_id = await caller.upload(MODEL)
    async with Caller(service.url) as other:
        await other.upload(MODEL)
        foreign = await refusal(other, method, f"{path}?runId={run_id}{more}")
        unknown = await refusal(other, method, f"{path}?runId={UNKNOWN}{more}")
        deleted = await refusal(other, "DELETE", f"/runs/{run_id}")

    assert foreign == unknown == deleted
    assert foreign[:2] == (404, "run_unknown")
    assert (await caller.get(f"/prepare/status?runId={run_id}"))["phase"] == "Pending"


@both_languages
@pytest.mark.parametrize("endpoint", ["POST /deploy/start", "GET /deploy/status"])
@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "env_missing"),
        ("&env=", "env_missing"),
        ("&env=production", "env_unknown"),
        ("&env=DEV", "env_unknown"),
        ("&env=..%2Fdev", "env_unknown"),
        ("&env=dev&env=prod", "parameter_repeated"),
    ],
)
async def test_a_wrong_environment_names_the_right_ones(
    endpoint: str, query: str, code: str, language: str, caller: Caller
) -> None:
    run_id = await caller.upload(MODEL)
    method, path = endpoint.split()
    status, found, message = await refusal(
        caller, method, f"{path}?runId={run_id}{query}", language
    )
    assert (status, found) == (400, code)
    if code.startswith("env"):
        assert "dev, stage, prod" in message


async def test_the_summary_takes_no_unknown_environment(caller: Caller) -> None:
    run_id = await caller.upload(MODEL)
    for env, code in (("", "env_missing"), ("nope", "env_unknown")):
        path = f"/monitor/summary?runId={run_id}&env={env}"
        assert (await refusal(caller, "GET", path))[:2] == (400, code)


@both_languages
@pytest.mark.parametrize(
    ("gpu", "code"),
    [
        ("", "gpu_id_malformed"),
        ("%00", "gpu_id_malformed"),
        ("a" * 200, "gpu_id_malformed"),
        ("GPU-00000000-0000-0000-0000-000000000000", "gpu_unknown"),
        ("0", "gpu_unknown"),
    ],
)
async def test_a_gpu_that_is_not_there_explains_itself(
    gpu: str, code: str, language: str, caller: Caller
) -> None:
    run_id = await caller.upload(MODEL)
    path = f"/prepare/start?runId={run_id}&gpuId={gpu}"
    assert (await refusal(caller, "POST", path, language))[:2] == (400, code)
    assert (await caller.get(f"/prepare/status?runId={run_id}"))["phase"] == "Pending"


async def test_the_cpu_may_be_asked_for_by_name_and_another_device_not_meanwhile(
    caller: Caller,
) -> None:
    run_id = await caller.upload(MODEL)
    status = await caller.post(f"/prepare/start?runId={run_id}&gpuId=cpu")
    assert_prepare_status(status, run_id)
    assert (status["device"], status["phase"]) == ("cpu", "Running")
    path = f"/prepare/start?runId={run_id}&gpuId=GPU-1"
    # Who waited for the end would not get this one either.
    assert (await refusal(caller, "POST", path))[:2] == (400, "gpu_unknown")


# ── methods, paths, bodies


@both_languages
@pytest.mark.parametrize(
    "endpoint",
    [
        "GET /upload",
        "PUT /upload",
        "GET /prepare/start",
        "POST /prepare/status",
        "POST /prepare/gpus",
        "GET /deploy/start",
        "DELETE /deploy/status",
        "POST /monitor/summary",
        "PUT /monitor/series",
        f"POST /runs/{UNKNOWN}/slo",
        "POST /runs",
        f"GET /runs/{UNKNOWN}",
    ],
)
async def test_a_wrong_method_is_405(endpoint: str, language: str, caller: Caller) -> None:
    method, path = endpoint.split()
    status, code, _ = await refusal(caller, method, path, language)
    assert (status, code) == (405, "method_not_allowed")


@both_languages
@pytest.mark.parametrize("path", ["/nothing", "/prepare", "/prepare/start/", "/runs/a/b"])
async def test_an_unknown_path_is_404(path: str, language: str, caller: Caller) -> None:
    assert (await refusal(caller, "GET", path, language))[:2] == (404, "path_unknown")


def form(*parts: tuple[str, bytes | str, str | None]) -> aiohttp.FormData:
    made = aiohttp.FormData(default_to_multipart=True)
    for name, content, filename in parts:
        made.add_field(name, content, filename=filename, content_type="application/octet-stream")
    return made


@both_languages
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([("other", MODEL, "m.onnx")], (400, "file_part_missing")),
        ([("file", MODEL, "a"), ("file", MODEL, "b")], (400, "file_part_repeated")),
        ([("file", "no file", None)], (400, "file_name_missing")),
        ([("file", b"", "m.onnx")], (400, "file_empty")),
        ([("file", MODEL, "m"), ("model", "no spaces!", None)], (400, "model_name_malformed")),
        ([("file", b"%PDF-1.7 " + bytes(99), "m.onnx")], (415, "artifact_type_unsupported")),
        ([("file", b"just some words", "m.pkl")], (415, "artifact_type_unsupported")),
        ([("file", bytes(1000), "m.zip")], (415, "artifact_type_unsupported")),
        ([("file", MODEL + bytes(LIMIT), "m.onnx")], (413, "artifact_too_large")),
    ],
)
async def test_an_upload_that_cannot_be_taken_explains_itself(
    parts: list[tuple[str, bytes | str, str | None]],
    expected: tuple[int, str],
    language: str,
    caller: Caller,
) -> None:
    found = await refusal(caller, "POST", "/upload", language, data=form(*parts))
    assert found[:2] == expected


async def test_a_refused_file_is_told_what_it_is_and_what_is_taken(caller: Caller) -> None:
    parts = ("file", b"%PDF-1.7 " + bytes(99), "m.onnx")
    _, _, message = await refusal(caller, "POST", "/upload", data=form(parts))
    assert "PDF" in message
    assert "ONNX" in message


@both_languages
async def test_an_upload_of_unknown_length_is_stopped_at_the_limit(
    language: str, caller: Caller
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n' + MODEL
        for _ in range(100):
            yield bytes(LIMIT // 10)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    found = await refusal(caller, "POST", "/upload", language, data=endless(), headers=headers)
    assert found[:2] == (413, "artifact_too_large")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Content-Type": "application/json"}, {(400, "multipart_expected")}),
        ({"Content-Type": "multipart/form-data"}, {(400, "multipart_boundary_missing")}),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            {(400, "multipart_malformed"), (400, "multipart_truncated")},
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"},
            {(415, "content_encoding_unsupported")},
        ),
    ],
)
async def test_a_body_that_is_no_form_explains_itself(
    headers: dict[str, str], expected: set[tuple[int, str]], caller: Caller
) -> None:
    data = b'{"file": "not a form"}'
    found = await refusal(caller, "POST", "/upload", data=data, headers=headers)
    assert found[:2] in expected
