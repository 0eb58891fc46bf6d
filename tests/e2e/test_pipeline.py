"""Every kind of model from its file to predictions, compared with what its framework answers."""

from __future__ import annotations

import asyncio
import json
import tarfile
import time
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio

from tests.support import onnx_files
from tests.support.predictions import addresses, assert_predicts
from tests.support.proofs import make_models
from tests.support.service import Caller, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

STEPS = ["integrity", "inspection", "device", "environment", "load", "smoke-test", "passport"]

RUN_ONNX = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
given = {name: numpy.array(value, "float32") for name, value in json.loads(sys.argv[2]).items()}
names = [one.name for one in session.get_outputs()]
print(json.dumps({n: a.tolist() for n, a in zip(names, session.run(None, given))}))
"""


@pytest.fixture(scope="module")
def made(environments: ModelEnvironments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``sklearn`` and ``torchscript`` with models made by the frameworks themselves."""
    folder = tmp_path_factory.mktemp("made")
    for kind in ("sklearn", "torchscript"):
        (folder / kind).mkdir()
        make_models(environments.python(kind), kind, folder / kind)
    environments.python("onnx")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    environments: ModelEnvironments, tmp_path_factory: pytest.TempPathFactory, made: Path
) -> AsyncIterator[Service]:
    data_dir = environments.lend(tmp_path_factory.mktemp("service") / "data")
    async with Service(data_dir) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(service: Service) -> AsyncIterator[Caller]:
    async with Caller(service.url) as one:
        yield one


def zipped(files: dict[str, bytes]) -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return target.getvalue()


def noted(made: Path, name: str) -> tuple[Any, Any]:
    """Inputs of a made model and the framework's answers to them."""
    note = json.loads((made / f"{name}.json").read_text())
    return note["inputs"], note["outputs"]


def bytes_of(made: Path, name: str) -> bytes:
    return (made / f"{name}.bin").read_bytes()


async def failure_of(caller: Caller, content: bytes) -> dict[str, Any]:
    """Upload and prepare something that cannot be prepared; return the failed step."""
    status = await caller.prepare(await caller.upload(content))
    assert status["phase"] == "Failed", status
    [failed] = [step for step in status["steps"] if step["status"] == "Failed"]
    at = status["steps"].index(failed)
    assert {step["status"] for step in status["steps"][:at]} <= {"Succeeded"}
    assert {step["status"] for step in status["steps"][at + 1 :]} <= {"Pending"}
    assert 20 < len(failed["message"]) <= 600
    return dict(failed)


async def test_an_onnx_file_answers_what_onnxruntime_answers(
    caller: Caller, environments: ModelEnvironments, tmp_path: Path
) -> None:
    content = onnx_files.linear()
    (tmp_path / "model.onnx").write_bytes(content)
    rows = np.random.default_rng(7).normal(size=(5, 4)).astype("float32").tolist()
    arguments = (tmp_path / "model.onnx", json.dumps({"x": rows}))
    told = await asyncio.to_thread(environments.run, "onnx", RUN_ONNX, *arguments, folder=tmp_path)

    _, status = await caller.ship(content, name="model.onnx")

    await assert_predicts(caller, status, {"x": rows}, json.loads(told))
    # It would tell its maker about the model, and log that nothing lets it.
    async with caller.http.get(f"{caller.url}/runs/{status['runId']}/logs") as logs:
        assert logs.status == 200
        assert "telemetry" not in (await logs.text()).lower()


async def test_every_step_is_shown_from_before_the_start_to_the_end(caller: Caller) -> None:
    run_id = await caller.upload(onnx_files.linear())
    before = await caller.get(f"/prepare/status?runId={run_id}")
    assert before["phase"] == "Pending"
    assert [(step["name"], step["status"]) for step in before["steps"]] == [
        (name, "Pending") for name in STEPS
    ]

    after = await caller.prepare(run_id)

    assert after["phase"] == "Succeeded"
    assert [(step["name"], step["status"]) for step in after["steps"]] == [
        (name, "Succeeded") for name in STEPS
    ]
    assert all(step["message"] for step in after["steps"])
    done = [step["completedAt"] for step in after["steps"]]
    assert done == sorted(done)

    again = await caller.post(f"/prepare/start?runId={run_id}")
    assert again == after


@pytest.mark.parametrize(
    "name",
    ["forest", "forest_joblib", "forest_compressed", "ridge_several", "words"],
)
async def test_a_scikit_learn_model_answers_what_scikit_learn_answers(
    name: str, caller: Caller, made: Path
) -> None:
    inputs, expected = noted(made, f"sklearn/{name}")

    _, status = await caller.ship(bytes_of(made, f"sklearn/{name}"), name=f"{name}.pkl")

    await assert_predicts(caller, status, inputs, expected)


@pytest.mark.parametrize("name", ["linear", "two_inputs", "words"])
async def test_a_torchscript_file_answers_what_pytorch_answers(
    name: str, caller: Caller, made: Path
) -> None:
    inputs, expected = noted(made, f"torchscript/{name}")

    _, status = await caller.ship(bytes_of(made, f"torchscript/{name}"), name=f"{name}.pt")

    await assert_predicts(caller, status, inputs, expected)


@pytest.mark.parametrize("pack", [zipped, tarred])
async def test_an_archive_brings_its_requirements_and_other_files_are_ignored(
    pack: Any, caller: Caller, made: Path, environments: ModelEnvironments
) -> None:
    inputs, expected = noted(made, "sklearn/ridge")
    built = environments.built()
    content = pack(
        {
            "project/model.pkl": bytes_of(made, "sklearn/ridge"),
            "project/requirements.txt": b"# what it was trained with\nscikit-learn>=1.9,<2\n",
            "project/README.md": b"How this model was trained.\n",
            "project/sklearn.py": b"raise SystemExit('an uploaded module was imported')\n",
        }
    )

    _, status = await caller.ship(content, name="project.archive")

    await assert_predicts(caller, status, inputs, expected)
    assert environments.built() == built


async def test_a_requirement_that_is_an_option_is_refused_by_name(
    caller: Caller, made: Path
) -> None:
    model = bytes_of(made, "sklearn/ridge")
    lines = b"scikit-learn\n--index-url https://example.org/simple\n"

    failed = await failure_of(caller, zipped({"m.pkl": model, "requirements.txt": lines}))

    assert (failed["name"], failed["code"]) == ("environment", "requirement_refused")
    assert "--index-url" in failed["message"]


async def test_a_sample_in_the_archive_tells_the_shapes_that_nothing_else_tells(
    caller: Caller, made: Path
) -> None:
    model = bytes_of(made, "torchscript/unknown")
    inputs, expected = noted(made, "torchscript/unknown")
    bare = await failure_of(caller, model)
    assert (bare["name"], bare["code"]) == ("smoke-test", "signature_unknown")
    assert "sample" in bare["message"]
    sample = BytesIO()
    np.savez(sample, x=np.array(inputs["x"], "float32"))

    run_id, status = await caller.ship(zipped({"m.pt": model, "sample.npz": sample.getvalue()}))

    await assert_predicts(caller, status, inputs, expected)
    prepared = await caller.get(f"/prepare/status?runId={run_id}")
    [smoke] = [step for step in prepared["steps"] if step["name"] == "smoke-test"]
    assert "sample" in smoke["message"]


@pytest.mark.parametrize(
    "name", ["evil_os_system", "evil_attribute", "evil_array_z", "evil_protocol0"]
)
async def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(
    name: str, caller: Caller, made: Path
) -> None:
    failed = await failure_of(caller, bytes_of(made, f"sklearn/{name}"))

    assert (failed["name"], failed["code"]) == ("inspection", "pickle_dangerous")
    assert not (made / "sklearn" / "marker").exists()


async def test_a_pickled_estimator_with_a_payload_is_unsafe_by_name(
    caller: Caller, made: Path
) -> None:
    failed = await failure_of(caller, bytes_of(made, "sklearn/evil_quiet"))

    assert (failed["name"], failed["code"]) == ("load", "unsafe_pickle")
    assert "savetxt" in failed["message"]


async def test_a_state_dict_is_named_as_such(caller: Caller, made: Path) -> None:
    for name in ("state_dict", "state_dict_old", "checkpoint"):
        failed = await failure_of(caller, bytes_of(made, f"torchscript/{name}"))
        assert failed["code"] == "state_dict_not_torchscript", name


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
async def test_a_model_that_answers_only_nan_fails_its_smoke_test(
    kind: str, caller: Caller, made: Path
) -> None:
    torch = bytes_of(made, "torchscript/never_finite")
    content = onnx_files.never_finite() if kind == "onnx" else torch

    failed = await failure_of(caller, content)

    assert (failed["name"], failed["code"]) == ("smoke-test", "smoke_test_not_finite")


async def test_a_run_that_failed_can_be_started_again_and_cannot_be_deployed(
    caller: Caller,
) -> None:
    run_id = await caller.upload(onnx_files.never_finite())
    first = await caller.prepare(run_id)
    second = await caller.prepare(run_id)
    assert (first["phase"], second["phase"]) == ("Failed", "Failed")
    assert (first["attempt"], second["attempt"]) == (1, 2)

    status, body = await caller.call("POST", f"/deploy/start?runId={run_id}&env=dev")

    assert (status, body["code"]) == (409, "not_prepared")


async def test_a_second_model_of_a_kind_needs_no_new_environment(
    caller: Caller, environments: ModelEnvironments
) -> None:
    await caller.ship(onnx_files.linear())
    built = {one: marker_time(environments, one) for one in environments.built()}

    await caller.ship(onnx_files.unary("Exp"))

    assert {one: marker_time(environments, one) for one in environments.built()} == built


def marker_time(environments: ModelEnvironments, name: str) -> int:
    return (environments.folder / name / "COMPLETE").stat().st_mtime_ns


async def test_a_wrong_tensor_is_a_400_that_names_it_and_what_was_expected(
    caller: Caller,
) -> None:
    run_id, status = await caller.ship(onnx_files.linear())
    good = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    wrong = {
        "name": {**good, "name": "z"},
        "type": {**good, "datatype": "INT64"},
        "shape": {**good, "shape": [1, 3], "data": [1, 2, 3]},
        "data": {**good, "data": ["a", "b", "c", "d"]},
    }
    for base in addresses(status):
        for what, tensor in wrong.items():
            code, body = await caller.call(
                "POST", f"{base}/v2/models/{run_id}/infer", json={"inputs": [tensor]}
            )
            assert code == 400, what
            assert body["error"] == body["message"]
            assert "x" in body["message"], what
        code, body = await caller.call("POST", f"{base}/v2/models/{'0' * 32}/infer", json={})
        assert code == 404, base


async def test_both_addresses_are_complete_base_urls_of_the_protocol(caller: Caller) -> None:
    run_id, status = await caller.ship(onnx_files.linear())
    for base in addresses(status):
        assert (await caller.get(f"{base}/v2"))["name"]
        assert (await caller.get(f"{base}/v2/health/live")) is not None
        assert (await caller.get(f"{base}/v2/health/ready")) is not None
        assert (await caller.get(f"{base}/v2/models/{run_id}/ready")) is not None


async def test_the_summary_moves_with_the_traffic_and_counts_what_the_caller_counts(
    caller: Caller,
) -> None:
    run_id, status = await caller.ship(onnx_files.linear())
    path = f"/monitor/summary?runId={run_id}"
    idle = await caller.get(path)
    assert idle["red"] == {"rps": 0, "errorsPercent": 0, "p95DurationMs": 0}
    assert idle["dataStatus"] == "no_traffic"
    good = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    sent: list[float] = []
    seconds: list[float] = []
    bases = addresses(status)

    async def send_for(duration: float) -> None:
        end = time.monotonic() + duration
        while time.monotonic() < end:
            url = f"{bases[len(sent) % 2]}/v2/models/{run_id}/infer"
            body = good if len(sent) % 10 else {"inputs": []}
            began = time.monotonic()
            answered, _ = await caller.call("POST", url, json=body)
            assert answered == (200 if body is good else 400)
            sent.append(time.monotonic())
            seconds.append(sent[-1] - began)
            await asyncio.sleep(0.04)

    await send_for(5)
    assert (await caller.get(path))["red"]["rps"] > 0

    # The figures of a window can agree once that long has passed; the default one is looked at by
    # test_monitoring_truth.
    window = 30
    await send_for(window)
    now = await caller.get(f"{path}&window={window}s")
    own = [at for at in sent if at > sent[-1] - window]
    assert now["red"]["rps"] == pytest.approx(len(own) / window, rel=0.1)
    assert now["red"]["errorsPercent"] == 0
    assert 0 < now["red"]["p95DurationMs"] < 1050 * sorted(seconds)[int(len(seconds) * 0.95)]
    assert now["slo"]["availability"] == 100
    assert now["slo"]["latencyP95Ms"] > 0
    assert now["dataStatus"] == "ok"
    assert (await caller.get(f"{path}&env=dev"))["red"]["rps"] > 0
    assert (await caller.get(f"{path}&env=prod"))["red"]["rps"] == 0


async def test_a_stranger_sees_nothing_of_a_run(service: Service, caller: Caller) -> None:
    run_id = await caller.upload(onnx_files.linear())
    async with Caller(service.url) as stranger:
        foreign, theirs = await stranger.call("GET", f"/prepare/status?runId={run_id}")
        unknown, nobodys = await stranger.call("GET", f"/prepare/status?runId={'0' * 32}")

    assert (foreign, theirs["message"]) == (unknown, nobodys["message"])
    assert foreign == 404
