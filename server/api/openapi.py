"""The OpenAPI 3.1 document of the whole API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server import __version__
from server.api.openapi_answers import answer_components, complete_answers, json_answer
from server.api.openapi_links import add_links
from server.api.openapi_monitor import monitoring, monitoring_schemas
from server.api.openapi_schemas import (
    GPU_ID_PATTERN,
    MODEL_PATTERN,
    RUN_ID_PATTERN,
    TARGET_PATTERN,
    VERSION_PATTERN,
    Both,
    in_language,
    ref,
    schemas,
)
from server.api.openapi_timeline import tagged, timeline, timeline_schemas
from server.setting_values import MAX_REPLICAS

if TYPE_CHECKING:
    from server.settings import Settings

BINARY_HEADER = "Inference-Header-Content-Length"
"""How long the JSON is that stands before binary tensors."""

_MODEL = "/{env}/v2/models/{name}"


def document(settings: Settings, language: str = "ru") -> dict[str, Any]:
    """Return the document with its texts in one language."""
    paths = {**_pipeline(settings), **_tokens(), **_inference(settings), **_service()}
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "Persephone",
            "version": __version__,
            "description": Both(
                "Загрузите обученную модель, подготовьте, разверните и наблюдайте за ней. Запуск "
                "принадлежит сессии (cookie), которая его загрузила, или владельцу токена; чужой и "
                "неизвестный запуск неотличимы. Язык сообщений выбирается по Accept-Language.",
                "Upload a trained model, prepare it, deploy it and watch it. A run belongs to the "
                "session (cookie), or to the owner of the token, that uploaded it; a foreign and an "
                "unknown one are the same. "
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
        "paths": paths,
        "components": {
            "schemas": {
                **schemas(settings),
                **monitoring_schemas(settings),
                **timeline_schemas(settings),
            },
            "responses": answer_components(),
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": "persephone_session"},
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "psk_"},
            },
        },
    }
    complete_answers(paths)
    add_links(paths)
    chosen: dict[str, Any] = in_language(whole, language)
    return chosen


def _pipeline(settings: Settings) -> dict[str, Any]:
    run, env, name = _run_id(), _environment(settings), _run_id("path")
    narrowed = {**env, "required": False}
    gpu = _parameter("gpuId", {"type": "string", "pattern": GPU_ID_PATTERN}, required=False)
    count = {"type": "integer", "minimum": 1, "maximum": MAX_REPLICAS}
    replicas = _parameter("replicas", count, required=False)
    after = _parameter("after", {"type": "string", "pattern": RUN_ID_PATTERN}, required=False)
    upload = _operation(
        "upload",
        Both("Загрузить артефакт", "Upload an artifact"),
        "Upload",
        errors="415 429",
        security=" session token",
        description=Both(
            "zip, tar, tar.gz, onnx, pt, pt2, pkl или joblib; вид определяется по содержимому.",
            "zip, tar, tar.gz, onnx, pt, pt2, pkl or joblib; the content decides the kind.",
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
                errors="404 409 429",
            )
        },
        "/prepare/status": {
            "get": tagged(
                _operation(
                    "preparationStatus",
                    Both("Состояние подготовки", "State of the preparation"),
                    "PrepareStatus",
                    [run],
                )
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
                errors="404 409 429",
            )
        },
        "/deploy/status": {
            "get": tagged(
                _operation(
                    "deploymentStatus",
                    Both("Состояние развёртывания", "State of the deployment"),
                    "DeployStatus",
                    [run, env],
                )
            )
        },
        "/deploy/stop": {
            "post": _operation(
                "stopDeployment",
                Both("Остановить развёртывание", "Stop the deployment"),
                "DeployStatus",
                [run, env],
                errors="404 409",
            )
        },
        **monitoring(_operation, run, narrowed, name),
        **timeline(_operation, name),
        "/runs": {
            "get": tagged(
                _operation(
                    "listRuns",
                    Both("Запуски этой сессии", "Runs of this session, newest first"),
                    "RunList",
                    [after],
                    errors="",
                    security=" session token",
                )
            )
        },
        "/runs/{runId}": {
            "delete": _operation(
                "deleteRun",
                Both("Удалить запуск", "Delete a run and its deployments"),
                "RunDeleted",
                [name],
                errors="404",
            )
        },
    }


def _tokens() -> dict[str, Any]:
    create = _operation(
        "createToken",
        Both("Создать токен для программы", "Make a token for a program"),
        "TokenMade",
        errors="404 409",
        curl='curl -b cookies {base}/tokens -d \'{"name": "ci", "scope": "api"}\'',
    )
    create["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": ref("TokenWish")}},
    }
    made = _operation("listTokens", Both("Токены", "Tokens"), "TokenList", errors="")
    ended = _operation(
        "revokeToken",
        Both("Отозвать токен", "Revoke a token"),
        "TokenRevoked",
        [_parameter("id", {"type": "string"}, where="path")],
    )
    return {"/tokens": {"post": create, "get": made}, "/tokens/{id}": {"delete": ended}}


def _inference(settings: Settings) -> dict[str, Any]:
    env = _environment(settings, "path")
    name = _parameter("name", {"type": "string", "pattern": MODEL_PATTERN}, where="path")
    version = _parameter("version", {"type": "string", "pattern": VERSION_PATTERN}, where="path")

    def of(path: str) -> list[dict[str, Any]]:
        return [one for one in (env, name, version) if f"{{{one['name']}}}" in path]

    def get(operation_id: str, summary: Both, schema: str, path: str) -> dict[str, Any]:
        # A replica answers where a model is named, the service itself elsewhere.
        is_of_model = "{name}" in path
        operation = _operation(
            operation_id,
            summary,
            schema,
            of(path),
            tag="inference",
            errors="404 413 503 504" if is_of_model else "",
            security=" session token" if is_of_model else None,
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
        errors="404 413 415 422 500 503 504",
        security=" session token",
        curl="curl -b cookies -H 'Content-Type: application/json' {base}{path} -d "
        '\'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}\'',
    )
    packed = {"type": "string", "contentMediaType": "application/octet-stream"}
    infer["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": ref("InferenceRequest")},
            "application/octet-stream": {"schema": packed},
        },
    }
    length = {"type": "integer", "minimum": 0}
    infer["parameters"].append(_parameter(BINARY_HEADER, length, where="header", required=False))
    success = infer["responses"]["200"]
    success["content"]["application/octet-stream"] = {"schema": packed}
    success["headers"] = {BINARY_HEADER: {"schema": length}}
    return infer


def _service() -> dict[str, Any]:
    def get(operation_id: str, summary: Both, **more: Any) -> dict[str, Any]:
        return {"get": _operation(operation_id, summary, tag="service", **more)}

    ready = get("readiness", Both("Готов ли к работе", "Ready for work"), schema="Readiness")
    ready["get"]["responses"]["503"] = json_answer(
        ref("Readiness"), Both("Не готов: почему", "Not ready, and why")
    )
    home = get("home", Both("К этой странице", "To this page"))
    del home["get"]["responses"]["200"]
    home["get"]["responses"]["302"] = {
        "description": Both("К описанию API", "To the description of the API"),
        "headers": {"Location": {"required": True, "schema": {"type": "string", "const": "docs"}}},
    }
    target = _parameter("target", {"type": "string", "pattern": TARGET_PATTERN}, where="path")
    return {
        "/": home,
        "/healthz": get("health", Both("Жив ли сервис", "Alive"), schema="Health", errors=""),
        "/readyz": ready,
        "/metrics": get(
            "metrics",
            Both("Показатели сервиса", "The service's figures"),
            media="text/plain",
            security=" token",
        ),
        "/sd": get(
            "discovery",
            Both("Цели для Prometheus", "Targets for Prometheus"),
            schema="Discovery",
            security=" token",
        ),
        "/sd/replicas/{target}/metrics": get(
            "replicaMetrics",
            Both("Показатели одной реплики", "One replica's figures"),
            media="text/plain",
            parameters=[target],
            errors="404 503",
            security=" token",
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
    security: str | None = None,
) -> dict[str, Any]:
    """Describe one operation; an empty word in ``security`` says that it needs none."""
    if errors is None:
        errors = "404" if tag == "pipeline" else ""
    if security is None and tag == "pipeline":
        security = "session token"
    kind = "InferenceError" if tag == "inference" else "Error"
    shape = ref(schema) if isinstance(schema, str) else schema
    answer: dict[str, Any] = {"description": Both("Успех", "Success")}
    if media:
        answer["content"] = {media: {"schema": {"type": "string"}}}
    elif shape is not None:
        answer = json_answer(shape, answer["description"])
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
    if security is not None:
        operation["security"] = [{name: []} if name else {} for name in security.split(" ")]
    if curl:
        operation["x-curl"] = curl
    return operation


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
