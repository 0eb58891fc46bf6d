"""What a run's steps and its deployments are said to do, from the first moment to the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from server.messages import Messages
from tests.support import onnx_files
from tests.support.in_process import serving
from tests.support.service import Caller
from tests.support.weightless import Machine, Model, WeightlessService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from server.records import Preparation

MODEL = onnx_files.linear()
GPU, OTHER_GPU = "GPU-a", "GPU-b"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[WeightlessService, Caller]]:
    async with (
        WeightlessService(tmp_path, Machine(), environments=("dev",)) as service,
        Caller(service.url) as caller,
    ):
        yield service, caller
        service.machine.let_go()


def heard_of(
    service: WeightlessService,
    monkeypatch: pytest.MonkeyPatch,
    also: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Return what running steps are said to do, as a list that grows."""
    heard: list[str] = []
    show = service.store.show_progress

    def listen(made: Preparation) -> None:
        show(made)
        running = [step.message for step in made.steps if step.status == "Running"]
        heard.extend(text.code for text in running if text is not None)
        also(heard[-1])

    monkeypatch.setattr(service.store, "show_progress", listen)
    return heard


def codes_of(status: dict[str, Any]) -> list[str]:
    return [step["code"] for step in status["steps"] if "code" in step]


@pytest.mark.parametrize(("device", "taken"), [("cpu", "device_cpu"), (GPU, "device_gpu")])
async def test_a_preparation_says_what_it_does(
    world: tuple[WeightlessService, Caller],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    taken: str,
) -> None:
    service, caller = world
    heard = heard_of(service, monkeypatch)
    run_id = await caller.upload(MODEL, Model.SOUND)
    first = await caller.post(f"/prepare/start?runId={run_id}&gpuId={device}")
    assert codes_of(first)[0] == "step_queued"
    assert codes_of(await caller.prepare(run_id)) == [
        "integrity_done",
        "inspection_done",
        taken,
        "environment_done",
        "load_done",
        "smoke_done",
        "passport_done",
    ]
    assert heard[:3] == ["integrity_running", "inspection_running", "device_running"]


async def test_a_gpu_that_disappears_while_a_run_waits_for_it_is_named(
    world: tuple[WeightlessService, Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, caller = world

    def vanish(code: str) -> None:
        if code == "device_running":
            service.machine.cards = (OTHER_GPU,)

    heard_of(service, monkeypatch, vanish)
    status = await caller.prepare(await caller.upload(MODEL, Model.SOUND), GPU)
    assert status["phase"] == "Failed"
    [failed] = [step for step in status["steps"] if step["status"] == "Failed"]
    assert (failed["name"], failed["code"]) == ("device", "gpu_gone")
    assert GPU in failed["message"]


async def test_an_inspection_without_an_end_is_given_up(tmp_path: Path) -> None:
    async with serving(tmp_path, inspect_seconds=0.001) as here:
        status = await here.caller.prepare(await here.caller.upload(MODEL), "cpu")
    assert codes_of(status) == ["integrity_done", "inspection_timed_out"]


async def test_a_deployment_says_how_it_stands(
    world: tuple[WeightlessService, Caller],
) -> None:
    service, caller = world
    runs = [await caller.upload(MODEL, Model.SOUND, "shared") for _ in range(2)]
    for run_id in runs:
        await caller.prepare(run_id, GPU if run_id == runs[0] else OTHER_GPU)

    async def said(number: int) -> str:
        status = await caller.get(f"/deploy/status?runId={runs[number]}&env=dev")
        return str(status["code"])

    async def until_said(number: int, code: str) -> None:
        path = f"/deploy/status?runId={runs[number]}&env=dev"
        await caller.until(path, lambda status: status["code"] == code, 20)

    assert await said(0) == "deploy_not_started"
    service.machine.hold()
    started = await caller.post(f"/deploy/start?runId={runs[0]}&env=dev")
    assert started["code"] == "deploy_starting"
    service.machine.let_go()
    await until_said(0, "deploy_serving")

    service.machine.hold()
    replacing = await caller.post(f"/deploy/start?runId={runs[1]}&env=dev")
    assert replacing["code"] == "deploy_replacing"
    assert await said(0) == "deploy_replaced"
    service.machine.let_go()
    await until_said(1, "deploy_serving")

    service.machine.hold()
    service.machine.serving[-1].crash()
    await until_said(1, "deploy_restarting")
    service.machine.let_go()
    await until_said(1, "deploy_serving")
    await caller.post(f"/deploy/stop?runId={runs[1]}&env=dev")
    assert await said(1) == "deploy_stopped"


async def test_a_version_that_fails_says_which_one_goes_on_serving(
    world: tuple[WeightlessService, Caller],
) -> None:
    _, caller = world
    for model in (Model.SOUND, Model.UNSERVABLE):
        run_id = await caller.upload(MODEL, model, "shared")
        await caller.prepare(run_id, "cpu")
        status = await caller.deploy(run_id)
    assert (status["phase"], status["code"]) == ("Failed", "onnx_invalid")
    older = Messages().render("deploy_older_serves", {"version": 1}, "en")
    assert status["message"].endswith(older)
