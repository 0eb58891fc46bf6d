"""The JSON shapes of the API as OpenAPI components, each text in Russian and English."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from server.states import Phase, Step

if TYPE_CHECKING:
    from server.settings import Settings

RUN_ID_PATTERN = "^[0-9a-f]{32}$"
MODEL_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

DATATYPES = (
    "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 BYTES".split()  # noqa: SIM905
)
DATA_STATUSES = ("ok", "no_traffic", "stale", "not_deployed", "unavailable")


class Both(NamedTuple):
    """A text in the two languages of the service."""

    ru: str
    en: str


def ref(name: str) -> dict[str, Any]:
    """Return a reference to the schema ``name``."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required.split()
    return schema


def _text(ru: str, en: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": Both(ru, en), **more}


def _number(ru: str, en: str, **more: Any) -> dict[str, Any]:
    return {"type": "number", "description": Both(ru, en), **more}


def _time(ru: str, en: str) -> dict[str, Any]:
    return _text(ru, en, format="date-time")


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def schemas(settings: Settings) -> dict[str, Any]:
    """Return all named schemas."""
    return {**_pages(settings), **_service(settings), **_inference()}


def _pages(settings: Settings) -> dict[str, Any]:
    run_id = {"type": "string", "pattern": RUN_ID_PATTERN}
    environment = {"type": "string", "enum": list(settings.environments)}
    phase = {"type": "string", "enum": [phase.value for phase in Phase]}
    code = _text("Постоянное имя сообщения", "Stable name of the message")
    message = _text("Текст для людей", "Text for people", maxLength=600)
    return {
        "Error": _object(
            "message code requestId",
            message=message,
            code=_text("Постоянное имя причины", "Stable name of the cause"),
            requestId=_text("Номер запроса, как в X-Request-Id", "As in X-Request-Id"),
        ),
        "Upload": _object(
            "runId",
            runId=run_id,
            model=_text("Имя модели", "The model's name"),
            sha256=_text("SHA-256 файла", "SHA-256 of the file", pattern="^[0-9a-f]{64}$"),
        ),
        "Step": _object(
            "name status",
            name={"type": "string", "enum": [step.value for step in Step]},
            status=phase,
            message=message,
            code=code,
            completedAt=_time("Когда шаг закончился", "When the step ended"),
        ),
        "PrepareStatus": _object(
            "runId phase steps",
            runId=run_id,
            phase=phase,
            steps=_list(ref("Step")),
            attempt={"type": "integer", "minimum": 1},
            device=_text("UUID видеокарты или cpu", "UUID of the GPU, or cpu"),
            updatedAt=_time("Время последней перемены", "Time of the last change"),
        ),
        "GpuOption": _object(
            "id name",
            id=_text("Значение для gpuId", "The value for gpuId"),
            name=_text("Название", "Name"),
            memoryGb=_number("Память, ГиБ", "Memory in GiB"),
            provider=_text("Поставщик", "Provider"),
            region=_text("Место", "Region"),
        ),
        "DeployStatus": _object(
            "runId environment phase",
            runId=run_id,
            environment=environment,
            phase=phase,
            message=message,
            code=code,
            version=_text("Номер новейшей попытки", "Number of the newest attempt"),
            servingVersion=_text("Номер, который отвечает сейчас", "Number that answers now"),
            replicas=_number("Сколько реплик нужно", "Replicas that are wanted"),
            readyReplicas=_number("Сколько реплик отвечает", "Replicas that answer"),
            endpoint=_text("Собственный адрес развёртывания", "The deployment's own address"),
            gateway=_text("Адрес через этот API", "Its address through this API"),
            startedAt=_time("Когда попытка началась", "When the attempt began"),
            updatedAt=_time("Время последней перемены", "Time of the last change"),
        ),
        "MonitorSummary": _object(
            "runId red slo",
            runId=run_id,
            environment=environment,
            red=_object(
                "rps errorsPercent p95DurationMs",
                rps=_number("Запросов в секунду за минуту", "Requests a second over a minute"),
                errorsPercent=_percent("Доля ошибок", "Share of errors"),
                p95DurationMs=_number("95-й процентиль, мс", "95th percentile in ms"),
            ),
            slo=_object(
                "availability latencyP95Ms",
                availability=_percent("Доступность", "Availability"),
                latencyP95Ms=_number("95-й процентиль, мс", "95th percentile in ms"),
            ),
            dataStatus={"type": "string", "enum": list(DATA_STATUSES)},
            updatedAt=_time("К какому времени относится", "The time it is of"),
        ),
        "Run": _object(
            "runId",
            runId=run_id,
            model={"type": "string"},
            fileName={"type": "string"},
            sizeBytes={"type": "integer"},
            sha256={"type": "string"},
            createdAt=_time("Когда загружен", "When it was uploaded"),
            preparation=phase,
            deployments={"type": "object", "additionalProperties": phase},
        ),
        "RunList": _object(
            "runs",
            runs=_list(ref("Run")),
            next=_text("Значение after следующей страницы", "The value after of the next page"),
        ),
        "RunDeleted": _object("runId", runId=run_id),
    }


def _percent(ru: str, en: str) -> dict[str, Any]:
    return _number(f"{ru}, %", f"{en} in percent", minimum=0, maximum=100)


def _service(settings: Settings) -> dict[str, Any]:
    texts = _list({"type": "string"})
    return {
        "Health": _object("status", status={"const": "ok"}, version={"type": "string"}),
        "Readiness": _object(
            "status",
            status={"type": "string", "enum": ["ready", "not_ready"]},
            version={"type": "string"},
            sandbox=_text("Песочница моделей", "Sandbox of the models"),
            monitoring=_object("source", source={"type": "string"}),
            gpus=_object("count free", count={"type": "integer"}, free={"type": "integer"}),
            inference={"type": "string"},
            environments=texts,
            problems=texts,
        ),
        "Discovery": _list(
            _object(
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
        "shape": _list({"type": "integer"}),
    }
    tensor = _object(
        "name shape datatype data",
        **described,
        data=_text("Значения, плоские или вложенные", "Values, flat or nested"),
        parameters={"type": "object"},
    )
    tensor["properties"]["data"] = {
        "type": "array",
        "description": Both("Значения, плоские или вложенные", "Values, flat or nested"),
    }
    return {
        "Tensor": tensor,
        "TensorMetadata": _object("name datatype", **described),
        "InferenceRequest": _object(
            "inputs",
            id={"type": "string"},
            parameters={"type": "object"},
            inputs=_list(ref("Tensor")),
            outputs=_list(_object("name", name={"type": "string"})),
        ),
        "InferenceResponse": _object(
            "model_name outputs",
            id={"type": "string"},
            model_name={"type": "string"},
            model_version={"type": "string"},
            parameters={"type": "object"},
            outputs=_list(ref("Tensor")),
        ),
        "InferenceError": _object(
            "error",
            error=_text("Текст для людей", "Text for people"),
            message={"type": "string"},
            code={"type": "string"},
            requestId={"type": "string"},
        ),
        "ModelMetadata": _object(
            "name platform inputs outputs",
            name={"type": "string"},
            versions=_list({"type": "string"}),
            platform={"type": "string"},
            inputs=_list(ref("TensorMetadata")),
            outputs=_list(ref("TensorMetadata")),
        ),
        "ServerMetadata": _object(
            "name version extensions",
            name={"type": "string"},
            version={"type": "string"},
            extensions=_list({"type": "string"}),
        ),
        "Live": _object("live", live={"type": "boolean"}),
        "Ready": _object("ready", ready={"type": "boolean"}),
        "ModelStatistics": _object("model_stats", model_stats=_list({"type": "object"})),
        "ModelReady": _object("ready", name={"type": "string"}, ready={"type": "boolean"}),
    }
