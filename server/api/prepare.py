"""Preparation over HTTP: start, status, the GPUs to choose from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from server import keys
from server.api import parameters
from server.api.edge import language_of
from server.api.replies import Remembered, present, reply
from server.api.runs import run_of
from server.messages import MAX_LENGTH, printable

if TYPE_CHECKING:
    from server.messages import Messages
    from server.records import Params, Preparation, StepState, Text


REMEMBERED = web.AppKey("remembered_preparations", Remembered)


async def start(request: web.Request) -> web.Response:
    """``POST /prepare/start``: start the preparation, or show the one there is."""
    run = await run_of(request)
    made = await request.app[keys.PREPARE].start(run, parameters.gpu_id(request))
    return reply(shown(request, made))


async def status(request: web.Request) -> web.Response:
    """``GET /prepare/status``."""
    run = await run_of(request)
    store = request.app[keys.STORE]
    made = store.preparation(run.run_id)
    return request.app[REMEMBERED].reply(
        request,
        (run.run_id, language_of(request)),
        made,
        lambda: shown(request, made),
        store.events.newest(run.run_id),
    )


async def gpus(request: web.Request) -> web.Response:
    """``GET /prepare/gpus``: what the run may take now, best first."""
    run = await run_of(request)
    options = await request.app[keys.DEVICES].options(run.run_id)
    return reply(
        [
            present(
                id=option.id,
                name=option.name,
                memoryGb=option.memory_gb,
                provider=option.provider,
            )
            for option in options
        ]
    )


def rendered(request: web.Request, text: Text | None) -> str | None:
    """Return a kept message in the reader's language, its evidence and its warnings with it."""
    if text is None:
        return None
    messages, language = request.app[keys.MESSAGES], language_of(request)
    said = [(text.code, text.params)]
    said += [(each["code"], each["params"]) for each in text.params.get("warnings", ())]
    sentences = [_with_evidence(messages, code, params, language) for code, params in said]
    return " ".join(sentences)[:MAX_LENGTH]


def _with_evidence(messages: Messages, code: str, params: Params, language: str) -> str:
    message = messages.render(code, params, language)
    evidence = printable(str(params.get("evidence", "")), MAX_LENGTH)
    # A sentence may hold it itself, there cut to the length of a value.
    if evidence and printable(evidence) not in message:
        message = f"{message} ({evidence})"
    return message


def shown(request: web.Request, made: Preparation) -> dict[str, Any]:
    """Return a preparation as JSON."""
    return present(
        runId=made.run_id,
        phase=made.phase,
        steps=[_step(request, state) for state in made.steps],
        attempt=made.attempt or None,
        device=made.device or None,
        sequence=request.app[keys.STORE].events.newest(made.run_id),
        updatedAt=made.updated_at,
    )


def _step(request: web.Request, state: StepState) -> dict[str, Any]:
    return present(
        name=state.step,
        status=state.status,
        message=rendered(request, state.message),
        code=None if state.message is None else state.message.code,
        completedAt=state.completed_at,
    )
