"""The OpenAPI 3.1 document of the whole API, and the page that shows it offline."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from server import __version__
from server.api.edge import language_of
from server.api.openapi_schemas import MODEL_PATTERN, RUN_ID_PATTERN, Both, ref, schemas
from server.api.replies import JSON_TYPE, dumps, reply
from server.messages import LANGUAGES
from server.settings import MAX_REPLICAS

if TYPE_CHECKING:
    from server.settings import Settings

PAGE = Path(__file__).parent / "docs" / "index.html"

_MODEL = "/{env}/v2/models/{name}"


class Reference:
    """Serves ``GET /openapi.json`` and ``GET /docs``; everything is made ready at the start."""

    def __init__(self, settings: Settings) -> None:
        self._documents = {language: dumps(document(settings, language)) for language in LANGUAGES}
        self._page = PAGE.read_bytes()
        hashes = " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
            for script in re.findall(rb"<script>(.*?)</script>", self._page, re.DOTALL)
        )
        self._policy = (
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )

    async def openapi(self, request: web.Request) -> web.Response:
        """``GET /openapi.json``."""
        return reply(self._documents[language_of(request)])

    async def docs(self, _request: web.Request) -> web.Response:
        """``GET /docs``."""
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
        }
        return web.Response(body=self._page, headers=headers)


def document(settings: Settings, language: str = "ru") -> dict[str, Any]:
    """Return the document with its texts in one language."""
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "Persephone",
            "version": __version__,
            "description": Both(
                "Загрузите обученную модель, подготовьте, разверните и наблюдайте за ней. Запуск "
                "принадлежит сессии (cookie), которая его загрузила; чужой и неизвестный запуск "
                "неотличимы. Язык сообщений выбирается по Accept-Language.",
                "Upload a trained model, prepare it, deploy it and watch it. A run belongs to the "
                "session (cookie) that uploaded it; a foreign and an unknown one are the same. "
                "The language of messages follows Accept-Language.",
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": settings.public_url or "/"}],
        "tags": [
            {"name": name, "description": text}
            for name, text in {
                "pipeline": Both("Путь модели", "The way of a model"),
                "inference": Both("Предсказания", "Predictions"),
                "service": Both("Сам сервис", "The service itself"),
            }.items()
        ],
        "paths": {**_pipeline(settings), **_inference(settings), **_service()},
        "components": {
            "schemas": schemas(settings),
            "responses": {
                "Error": _json(
                    ref("Error"),
                    Both("Ошибка: причина и что делать", "An error: the cause and what to do"),
                ),
                "InferenceError": _json(
                    ref("InferenceError"),
                    Both("Ошибка: причина и что делать", "An error: the cause and what to do"),
                ),
            },
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": "persephone_session"}
            },
        },
    }
    chosen: dict[str, Any] = _in_language(whole, language)
    return chosen


def _pipeline(settings: Settings) -> dict[str, Any]:
    run, env, name = _run_id(), _environment(settings), _run_id("path")
    narrowed = {**env, "required": False}
    gpu = _parameter("gpuId", {"type": "string"}, required=False)
    count = {"type": "integer", "minimum": 1, "maximum": MAX_REPLICAS}
    replicas = _parameter("replicas", count, required=False)
    after = _parameter("after", {"type": "string"}, required=False)
    upload = _operation(
        "upload",
        Both("Загрузить артефакт", "Upload an artifact"),
        "Upload",
        errors="400 403 408 413 415 507",
        description=Both(
            "zip, tar, tar.gz, onnx, pt, pkl или joblib; вид определяется по содержимому.",
            "zip, tar, tar.gz, onnx, pt, pkl or joblib; the content decides the kind.",
        ),
        curl=f"curl -c cookies -F file=@model.onnx {{base}}/upload  # <= {settings.max_upload_bytes}",
    )
    upload["requestBody"] = _form()
    return {
        "/upload": {"post": upload},
        "/prepare/start": {
            "post": _operation(
                "startPreparation",
                Both("Начать подготовку", "Start the preparation"),
                "PrepareStatus",
                [run, gpu],
                errors="400 403 404 409",
            )
        },
        "/prepare/status": {
            "get": _operation(
                "preparationStatus",
                Both("Состояние подготовки", "State of the preparation"),
                "PrepareStatus",
                [run],
            )
        },
        "/prepare/gpus": {
            "get": _operation(
                "listGpus",
                Both("Свободные видеокарты", "Free GPUs, best first"),
                {"type": "array", "items": ref("GpuOption")},
                [run],
            )
        },
        "/deploy/start": {
            "post": _operation(
                "startDeployment",
                Both("Развернуть модель", "Deploy the model"),
                "DeployStatus",
                [run, env, replicas],
                errors="400 403 404 409",
            )
        },
        "/deploy/status": {
            "get": _operation(
                "deploymentStatus",
                Both("Состояние развёртывания", "State of the deployment"),
                "DeployStatus",
                [run, env],
            )
        },
        "/deploy/stop": {
            "post": _operation(
                "stopDeployment",
                Both("Остановить развёртывание", "Stop the deployment"),
                "DeployStatus",
                [run, env],
                errors="400 403 404 409",
            )
        },
        "/monitor/summary": {"get": _summary(run, narrowed)},
        "/runs": {
            "get": _operation(
                "listRuns",
                Both("Запуски этой сессии", "Runs of this session, newest first"),
                "RunList",
                [after],
                errors="400",
            )
        },
        "/runs/{runId}": {
            "delete": _operation(
                "deleteRun",
                Both("Удалить запуск", "Delete a run and its deployments"),
                "RunDeleted",
                [name],
                errors="400 403 404",
            )
        },
    }


def _summary(run: dict[str, Any], env: dict[str, Any]) -> dict[str, Any]:
    operation = _operation(
        "monitorSummary",
        Both("Показатели RED и SLO", "RED and SLO figures"),
        "MonitorSummary",
        [run, env],
    )
    source = {"schema": {"type": "string", "enum": ["prometheus", "embedded"]}}
    operation["responses"]["200"]["headers"] = {"X-Metrics-Source": source}
    return operation


def _inference(settings: Settings) -> dict[str, Any]:
    env = _environment(settings, "path")
    name = _parameter("name", {"type": "string"}, where="path")

    version = _parameter("version", {"type": "string"}, where="path")

    def of(path: str) -> list[dict[str, Any]]:
        return [one for one in (env, name, version) if f"{{{one['name']}}}" in path]

    def get(operation_id: str, summary: Both, schema: str, path: str) -> dict[str, Any]:
        parameters = of(path)
        operation = _operation(
            operation_id, summary, schema, parameters, tag="inference", errors="400 401 404 503"
        )
        return {path: {"get": operation}}

    def model(suffix: str, path: str) -> dict[str, Any]:
        ready, stats = Both("Модель готова", "The model is ready"), Both("Статистика", "Statistics")
        return {
            f"{path}/infer": {"post": _infer(f"infer{suffix}", of(path))},
            **get(f"modelMetadata{suffix}", Both("Модель", "The model"), "ModelMetadata", path),
            **get(f"modelReady{suffix}", ready, "ModelReady", f"{path}/ready"),
            **get(f"modelStatistics{suffix}", stats, "ModelStatistics", f"{path}/stats"),
        }

    return {
        **get("serverMetadata", Both("Сведения о сервере", "The server"), "ServerMetadata", "/{env}/v2"),
        **get("serverLive", Both("Сервер жив", "Alive"), "Live", "/{env}/v2/health/live"),
        **get("serverReady", Both("Сервер готов", "Ready"), "Ready", "/{env}/v2/health/ready"),
        **model("", _MODEL),
        **model("OfVersion", f"{_MODEL}/versions/{{version}}"),
    }  # fmt: skip


def _infer(operation_id: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    infer = _operation(
        operation_id,
        Both("Получить предсказание", "Predict"),
        "InferenceResponse",
        parameters,
        tag="inference",
        errors="400 401 403 404 408 413 500 503 504",
        curl="curl -b cookies -H 'Content-Type: application/json' {base}{path} -d "
        '\'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}\'',
    )
    infer["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": ref("InferenceRequest")}},
    }
    return infer


def _service() -> dict[str, Any]:
    def get(operation_id: str, summary: Both, **more: Any) -> dict[str, Any]:
        return {"get": _operation(operation_id, summary, tag="service", **more)}

    ready = get("readiness", Both("Готов ли к работе", "Ready for work"), schema="Readiness")
    ready["get"]["responses"]["503"] = _json(
        ref("Readiness"), Both("Не готов: почему", "Not ready, and why")
    )
    target = _parameter("target", {"type": "string"}, where="path")
    return {
        "/healthz": get("health", Both("Жив ли сервис", "Alive"), schema="Health", errors=""),
        "/readyz": ready,
        "/metrics": get(
            "metrics", Both("Показатели сервиса", "The service's figures"), media="text/plain"
        ),
        "/sd": get(
            "discovery",
            Both("Цели для Prometheus", "Targets for Prometheus"),
            schema="Discovery",
        ),
        "/sd/replicas/{target}/metrics": get(
            "replicaMetrics",
            Both("Показатели одной реплики", "One replica's figures"),
            media="text/plain",
            parameters=[target],
            errors="404 503",
        ),
        "/openapi.json": get(
            "openapi", Both("Этот документ", "This document"), schema={"type": "object"}
        ),
        "/docs": get("docs", Both("Эта страница", "This page"), media="text/html"),
    }


def _operation(
    operation_id: str,
    summary: Both,
    schema: str | dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    *,
    tag: str = "pipeline",
    errors: str | None = None,
    media: str = "",
    curl: str = "",
    description: Both | None = None,
) -> dict[str, Any]:
    if errors is None:
        errors = "400 404" if tag == "pipeline" else ""
    kind = "InferenceError" if tag == "inference" else "Error"
    shape = ref(schema) if isinstance(schema, str) else schema
    answer: dict[str, Any] = {"description": Both("Успех", "Success")}
    if media:
        answer["content"] = {media: {"schema": {"type": "string"}}}
    elif shape is not None:
        answer = _json(shape, answer["description"])
    responses = {"200": answer}
    for status in (*errors.split(), "default"):
        responses[status] = {"$ref": f"#/components/responses/{kind}"}
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "responses": responses,
    }
    if description is not None:
        operation["description"] = description
    if parameters:
        operation["parameters"] = parameters
    if tag == "pipeline" and operation_id != "upload":
        operation["security"] = [{"session": []}]
    if curl:
        operation["x-curl"] = curl
    return operation


def _json(schema: dict[str, Any], description: Both) -> dict[str, Any]:
    media = JSON_TYPE.partition(";")[0]
    return {"description": description, "content": {media: {"schema": schema}}}


def _form() -> dict[str, Any]:
    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    model = {"type": "string", "pattern": MODEL_PATTERN}
    fields = {"file": binary, "model": model}
    schema = {"type": "object", "required": ["file"], "properties": fields}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _run_id(where: str = "query") -> dict[str, Any]:
    return _parameter("runId", {"type": "string", "pattern": RUN_ID_PATTERN}, where=where)


def _environment(settings: Settings, where: str = "query") -> dict[str, Any]:
    return _parameter("env", {"type": "string", "enum": list(settings.environments)}, where=where)


def _parameter(
    name: str, schema: dict[str, Any], *, where: str = "query", required: bool = True
) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": schema}


def _in_language(value: Any, language: str) -> Any:
    if isinstance(value, Both):
        return value.en if language == "en" else value.ru
    if isinstance(value, dict):
        return {key: _in_language(item, language) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_language(item, language) for item in value]
    return value
