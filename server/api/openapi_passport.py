"""The part of the OpenAPI document about a model's passport."""

from __future__ import annotations

from typing import Any

from server.api.openapi_schemas import CODE_PATTERN, Both, listed, number, ref, shape

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_VERSIONS = {"type": "object", "additionalProperties": _TEXT}
_PERCENTILES = {name: {"type": "number", "minimum": 0} for name in ("p50", "p95")}


def passport_schemas() -> dict[str, Any]:
    """Return the schemas of all that a passport holds."""
    tensors = listed(ref("TensorMetadata"))
    return {
        "Passport": shape(
            "kind framework framework_version python packages device_asked device digest "
            "environment lock lock_device made_with signature load_seconds peak_memory_bytes "
            "packed_bytes latency_ms latency_by_batch_ms measured_elements batching warmup warnings",
            kind=_TEXT,
            framework=_TEXT,
            framework_version=_TEXT,
            python=_TEXT,
            packages=_said(
                _VERSIONS,
                "Версии библиотек, с которыми модель работает",
                "Versions of the libraries that the model runs with",
            ),
            made_with=_said(
                _VERSIONS,
                "Чем модель создана, насколько это видно из файлов",
                "What the model was made with, as far as its files tell",
            ),
            device_asked=_said(_TEXT, "cpu или cuda", "cpu or cuda"),
            device=_said(_TEXT, "Где модель считает на самом деле", "Where it really computes"),
            digest=_said(_TEXT, "SHA-256 загруженного файла", "SHA-256 of the upload"),
            environment=_said(_TEXT, "Дайджест lock", "Digest of the lock"),
            lock=_said(
                _TEXT, "Точные пакеты, по одному в строке", "The exact packages, one a line"
            ),
            lock_device=_TEXT,
            signature=shape("inputs outputs", inputs=tensors, outputs=tensors),
            load_seconds=number("Сколько загружалась", "How long loading took", minimum=0),
            peak_memory_bytes=_COUNT,
            packed_bytes=_said(
                _COUNT,
                "Размер формы с общими весами; 0, если её нет",
                "Size of the form with shared weights; 0 without one",
            ),
            latency_ms=shape("p50 p95", **_PERCENTILES),
            latency_by_batch_ms=listed(shape("rows p50 p95", rows=_COUNT, **_PERCENTILES)),
            measured_elements=_said(
                _COUNT,
                "Сколько элементов было во входах измеренного запроса",
                "Elements in the inputs of the request that was measured",
            ),
            batching=shape(
                "equal gain",
                equal=_said(
                    {"type": "boolean"},
                    "Строки разных запросов можно считать вместе",
                    "Rows of several requests may share a call",
                ),
                gain=number("Во сколько раз это быстрее", "How many times faster that is"),
            ),
            warmup=shape("source inputs", source=_TEXT, inputs=listed(ref("WarmUpTensor"))),
            warnings=listed(
                shape(
                    "code params",
                    code={"type": "string", "pattern": CODE_PATTERN},
                    params={"type": "object"},
                )
            ),
        ),
        "WarmUpTensor": {
            **shape(
                "name datatype shape",
                name=_TEXT,
                datatype=_TEXT,
                shape=listed(_COUNT),
                data={"type": "array"},
                fill=_said(
                    {"type": ["number", "string"]},
                    "Одно значение всех элементов большого тензора",
                    "The one value of all elements of a large tensor",
                ),
            ),
            "oneOf": [{"required": ["data"]}, {"required": ["fill"]}],
        },
    }


def _said(schema: dict[str, Any], ru: str, en: str) -> dict[str, Any]:
    return {**schema, "description": Both(ru, en)}
