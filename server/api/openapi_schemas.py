"""The JSON shapes of the API as OpenAPI components, each text in Russian and English."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from server.states import Phase, Scope, Step

if TYPE_CHECKING:
    from server.settings import Settings

RUN_ID_PATTERN = "^[0-9a-f]{32}$"
MODEL_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
GPU_ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
VERSION_PATTERN = "^[1-9][0-9]*$"
TARGET_PATTERN = "^[A-Za-z0-9._~%-]+$"
CODE_PATTERN = "^[a-z][a-z0-9_]+$"

DATATYPES = (
    "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 BF16 FP32 FP64 BYTES".split()  # noqa: SIM905
)


class Both(NamedTuple):
    """A text in the two languages of the service."""

    ru: str
    en: str


def in_language(value: Any, language: str) -> Any:
    """Return a document with every text in one language."""
    if isinstance(value, Both):
        return value.en if language == "en" else value.ru
    if isinstance(value, dict):
        return {key: in_language(item, language) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [in_language(item, language) for item in value]
    return value


def ref(name: str) -> dict[str, Any]:
    """Return a reference to the schema ``name``."""
    return {"$ref": f"#/components/schemas/{name}"}


def shape(required: str, **properties: Any) -> dict[str, Any]:
    """Return an object; ``required`` names its fields that are always there."""
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required.split()
    return schema


def _text(ru: str, en: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": Both(ru, en), **more}


def number(ru: str, en: str, **more: Any) -> dict[str, Any]:
    """Return a number."""
    return {"type": "number", "description": Both(ru, en), **more}


def _count(ru: str, en: str) -> dict[str, Any]:
    return {"type": "integer", "minimum": 0, "description": Both(ru, en)}


def time(ru: str, en: str) -> dict[str, Any]:
    """Return a moment."""
    return _text(ru, en, format="date-time")


def listed(item: dict[str, Any]) -> dict[str, Any]:
    """Return an array."""
    return {"type": "array", "items": item}


def schemas(settings: Settings) -> dict[str, Any]:
    """Return all named schemas."""
    return {**_pages(settings), **_tokens(), **_service(settings), **_inference()}


def _pages(settings: Settings) -> dict[str, Any]:
    run_id = {"type": "string", "pattern": RUN_ID_PATTERN}
    environment = {"type": "string", "enum": list(settings.environments)}
    phase = {"type": "string", "enum": [phase.value for phase in Phase]}
    code = _text("Постоянное имя сообщения", "Stable name of the message", pattern=CODE_PATTERN)
    message = _text("Текст для людей", "Text for people", maxLength=600)
    return {
        "Error": shape(
            "message code requestId",
            message=message,
            code=_text("Постоянное имя причины", "Stable name of the cause", pattern=CODE_PATTERN),
            requestId=_text("Номер запроса, как в X-Request-Id", "As in X-Request-Id"),
        ),
        "Upload": shape(
            "runId",
            runId=run_id,
            model=_text("Имя модели", "The model's name"),
            sha256=_text("SHA-256 файла", "SHA-256 of the file", pattern="^[0-9a-f]{64}$"),
        ),
        "Step": shape(
            "name status",
            name={"type": "string", "enum": [step.value for step in Step]},
            status=phase,
            message=message,
            code=code,
            completedAt=time("Когда шаг закончился", "When the step ended"),
        ),
        "PrepareStatus": shape(
            "runId phase steps",
            runId=run_id,
            phase=phase,
            steps=listed(ref("Step")),
            attempt={"type": "integer", "minimum": 1},
            device=_text("UUID видеокарты или cpu", "UUID of the GPU, or cpu"),
            sequence=_count("Номер новейшего события запуска", "Number of the run's newest event"),
            updatedAt=time("Время последней перемены", "Time of the last change"),
        ),
        "GpuOption": shape(
            "id name",
            id=_text("Значение для gpuId", "The value for gpuId"),
            name=_text("Название", "Name"),
            memoryGb=number("Память, ГиБ", "Memory in GiB"),
            provider=_text("Поставщик", "Provider"),
            region=_text("Место", "Region"),
        ),
        "DeployStatus": shape(
            "runId environment phase",
            runId=run_id,
            environment=environment,
            phase=phase,
            message=message,
            code=code,
            version=_text("Номер новейшей попытки", "Number of the newest attempt"),
            servingVersion=_text("Номер, который отвечает сейчас", "Number that answers now"),
            replicas=_count("Сколько реплик нужно", "Replicas that are wanted"),
            readyReplicas=_count("Сколько реплик отвечает", "Replicas that answer"),
            endpoint=_text("Собственный адрес развёртывания", "The deployment's own address"),
            gateway=_text("Адрес через этот API", "Its address through this API"),
            sequence=_count("Номер новейшего события запуска", "Number of the run's newest event"),
            startedAt=time("Когда попытка началась", "When the attempt began"),
            updatedAt=time("Время последней перемены", "Time of the last change"),
        ),
        "Run": shape(
            "runId",
            runId=run_id,
            model={"type": "string"},
            fileName={"type": "string"},
            sizeBytes={"type": "integer"},
            sha256={"type": "string"},
            createdAt=time("Когда загружен", "When it was uploaded"),
            preparation=phase,
            sequence=_count("Номер новейшего события запуска", "Number of the run's newest event"),
            deployments={"type": "object", "additionalProperties": phase},
        ),
        "RunList": shape(
            "runs quota",
            quota={
                "type": "object",
                "description": Both("Сколько занято и сколько можно", "What is used and allowed"),
                "additionalProperties": shape(
                    "used limit", used={"type": "integer"}, limit={"type": "integer"}
                ),
            },
            runs=listed(ref("Run")),
            next=_text("Значение after следующей страницы", "The value after of the next page"),
        ),
        "RunDeleted": shape("runId", runId=run_id),
    }


def _tokens() -> dict[str, Any]:
    name = {"type": "string", "minLength": 1, "maxLength": 64}
    scope = {"type": "string", "enum": [scope.value for scope in Scope]}
    model = {"type": "string", "pattern": MODEL_PATTERN}
    shown = {
        "id": {"type": "string"},
        "name": name,
        "scope": scope,
        "model": model,
        "createdAt": time("Когда создан", "When it was made"),
        "lastUsedAt": time("Когда последний раз применялся", "When it was last used"),
        "expiresAt": time("Когда истекает", "When it expires"),
    }
    seconds = {"type": ["integer", "null"], "minimum": 1, "maximum": 10 * 365 * 24 * 3600}
    wish = shape(
        "name scope",
        name=name,
        scope=scope,
        runId={"type": ["string", "null"], "pattern": RUN_ID_PATTERN},
        model={"type": ["string", "null"], "pattern": MODEL_PATTERN},
        expiresIn=seconds,
    )
    # Only a token for predictions is limited, and by one of the two.
    none = {"type": "null"}
    predicts = {"scope": {"const": Scope.INFERENCE.value}}
    wish["anyOf"] = [
        {"properties": {"runId": none, "model": none}},
        {"properties": {**predicts, "model": none}},
        {"properties": {**predicts, "runId": none}},
    ]
    secret = _text("Сам токен; больше не показывается", "The token itself; not shown again")
    return {
        "TokenWish": {**wish, "additionalProperties": False},
        "TokenMade": shape("id name scope createdAt token", **shown, token=secret),
        "TokenList": shape("tokens", tokens=listed(ref("Token"))),
        "Token": shape("id name scope createdAt", **shown),
        "TokenRevoked": shape("id", id={"type": "string"}),
    }


def percent(ru: str, en: str) -> dict[str, Any]:
    """Return a share in percent."""
    return number(f"{ru}, %", f"{en} in percent", minimum=0, maximum=100)


def _service(settings: Settings) -> dict[str, Any]:
    texts = listed({"type": "string"})
    return {
        "Health": shape("status", status={"const": "ok"}, version={"type": "string"}),
        "Readiness": shape(
            "status",
            status={"type": "string", "enum": ["ready", "not_ready"]},
            version={"type": "string"},
            sandbox=shape(
                "level layers",
                level={"type": "integer", "minimum": 1, "maximum": 3},
                layers=texts,
            ),
            monitoring=shape("source", source={"type": "string"}, prometheusUp={"type": "boolean"}),
            gpus=shape(
                "count free",
                count={"type": "integer"},
                free={"type": "integer"},
                problem=_text("Почему список пуст или стар", "Why the list is empty or old"),
            ),
            inference={"type": "string"},
            environments=texts,
            problems=texts,
        ),
        "Discovery": listed(
            shape(
                "targets labels",
                targets=texts,
                labels={"type": "object", "additionalProperties": {"type": "string"}},
            )
        ),
    }


def _inference() -> dict[str, Any]:
    described = {
        "name": {"type": "string"},
        "datatype": {"type": "string", "enum": DATATYPES},
        "shape": listed({"type": "integer", "minimum": -1}),
    }
    tensor = shape(
        "name shape datatype",
        **described,
        data={
            "type": "array",
            "description": Both("Значения, плоские или вложенные", "Values, flat or nested"),
        },
        parameters={"type": "object"},
    )
    # A binary tensor has its size among the parameters in place of data.
    tensor["anyOf"] = [{"required": ["data"]}, {"required": ["parameters"]}]
    return {
        "Tensor": tensor,
        "TensorMetadata": shape("name datatype", **described),
        "InferenceRequest": shape(
            "inputs",
            id={"type": "string"},
            parameters={"type": "object"},
            inputs=listed(ref("Tensor")),
            outputs=listed(shape("name", name={"type": "string"}, parameters={"type": "object"})),
        ),
        "InferenceResponse": shape(
            "model_name outputs",
            id={"type": "string"},
            model_name={"type": "string"},
            model_version={"type": "string"},
            parameters={"type": "object"},
            outputs=listed(ref("Tensor")),
        ),
        "InferenceError": shape(
            "error message code requestId",
            error=_text("Текст для людей", "Text for people"),
            message={"type": "string"},
            code={"type": "string", "pattern": CODE_PATTERN},
            requestId={"type": "string"},
        ),
        "ModelMetadata": shape(
            "name platform inputs outputs",
            name={"type": "string"},
            versions=listed({"type": "string"}),
            platform={"type": "string"},
            inputs=listed(ref("TensorMetadata")),
            outputs=listed(ref("TensorMetadata")),
        ),
        "ServerMetadata": shape(
            "name version extensions",
            name={"type": "string"},
            version={"type": "string"},
            extensions=listed({"type": "string"}),
        ),
        "Live": shape("live", live={"type": "boolean"}),
        "Ready": shape("ready", ready={"type": "boolean"}),
        "ModelStatistics": shape("model_stats", model_stats=listed({"type": "object"})),
        "ModelReady": shape("ready", name={"type": "string"}, ready={"type": "boolean"}),
    }
