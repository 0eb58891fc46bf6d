"""The part of the OpenAPI document about what happened to a run: events, logs, passport, bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.api.events import MOST as MOST_SEQUENCE
from server.api.openapi_passport import passport_schemas
from server.api.openapi_schemas import CODE_PATTERN, RUN_ID_PATTERN, Both, listed, ref, shape, time
from server.states import Step
from server.store.run_logs import MOST_LINES

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.settings import Settings

_Operation = dict[str, Any]

_TEXT = {"type": "string"}
_TAG = {
    "ETag": {
        "schema": {"type": "string", "pattern": '^"[0-9a-f]{24}"$'},
        "description": Both(
            "Метка ответа: с ней в If-None-Match неизменившийся ответ — 304 без тела",
            "The answer's tag: with it in If-None-Match an unchanged answer is 304 without a body",
        ),
    }
}


def tagged(operation: _Operation) -> _Operation:
    """Let an operation answer with a tag, and 304 to whoever names it."""
    answers = operation["responses"]
    answers["200"]["headers"] = {**answers["200"].get("headers", {}), **_TAG}
    answers["304"] = {"description": Both("Не изменилось", "Unchanged"), "headers": _TAG}
    return operation


def timeline(operation: Callable[..., _Operation], run_in_path: _Operation) -> dict[str, Any]:
    """Return the paths; ``operation`` makes one."""
    number = {"type": "integer", "minimum": 0}
    events = operation(
        "listEvents",
        Both("События запуска", "What happened to a run"),
        "EventList",
        [run_in_path, _query("after", {**number, "maximum": MOST_SEQUENCE})],
        errors="404 429",
        description=Both(
            "С Accept: text/event-stream — поток событий (server-sent events), который "
            "продолжается; Last-Event-ID продолжает с места обрыва.",
            "With Accept: text/event-stream these are server-sent events that go on; Last-Event-ID "
            "goes on where they broke off.",
        ),
    )
    events["responses"]["200"]["content"]["text/event-stream"] = {"schema": _TEXT}
    logs = operation(
        "runLogs",
        Both("Последние строки процессов запуска", "The last lines of a run's processes"),
        media="text/plain",
        parameters=[
            run_in_path,
            _query("lines", {**number, "maximum": MOST_LINES}),
            _query("follow", {"type": "boolean"}),
        ],
        errors="404 429",
        description=Both(
            "С Accept: application/x-ndjson — по объекту JSON в строке; follow=true продолжает "
            "новыми строками.",
            "With Accept: application/x-ndjson a JSON object a line; follow=true goes on with new "
            "lines.",
        ),
    )
    logs["responses"]["200"]["content"]["application/x-ndjson"] = {"schema": _TEXT}
    passport = operation(
        "showPassport", Both("Паспорт модели", "The model's passport"), "Passport", [run_in_path]
    )
    bundle = operation(
        "supportBundle",
        Both("Всё о запуске одним архивом zip", "Everything about a run as one zip"),
        media="application/zip",
        parameters=[run_in_path],
    )
    bundle["responses"]["200"]["content"] = {
        "application/zip": {"schema": {"type": "string", "contentMediaType": "application/zip"}}
    }
    return {
        "/runs/{runId}/events": {"get": tagged(events)},
        "/runs/{runId}/logs": {"get": logs},
        "/runs/{runId}/passport": {"get": tagged(passport)},
        "/runs/{runId}/support-bundle": {"get": bundle},
    }


def timeline_schemas(settings: Settings) -> dict[str, Any]:
    """Return the schemas of these paths."""
    code = {"type": "string", "pattern": CODE_PATTERN}
    number = {"type": "integer", "minimum": 0}
    return {
        "EventList": shape(
            "runId events sequence",
            runId={"type": "string", "pattern": RUN_ID_PATTERN},
            events=listed(ref("Event")),
            sequence={
                **number,
                "description": Both("Номер новейшего события", "Number of the newest event"),
            },
            gap={
                "type": "boolean",
                "description": Both(
                    "Часть событий после after могла быть уже удалена",
                    "Some of the events after `after` may have been dropped",
                ),
            },
        ),
        "Event": shape(
            "sequence at code message by",
            sequence={
                "type": "integer",
                "minimum": 1,
                "description": Both(
                    "Растёт по всему сервису и не повторяется",
                    "Goes up over the whole service, and never comes again",
                ),
            },
            at=time("Когда", "When"),
            code=code,
            message={"type": "string", "maxLength": 600},
            by={"type": "string", "enum": ["session", "token", "service"]},
            tokenId=_TEXT,
            step={"type": "string", "enum": [step.value for step in Step]},
            attempt=number,
            environment={"type": "string", "enum": list(settings.environments)},
            version=_TEXT,
            gpu=_TEXT,
            reason={
                **code,
                "description": Both("Код сообщения о причине", "Code of what was said of it"),
            },
        ),
        **passport_schemas(),
    }


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}
