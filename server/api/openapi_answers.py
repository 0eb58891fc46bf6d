"""What operations answer beside success, as OpenAPI: their own errors and those of the edge."""

from __future__ import annotations

from typing import Any

from server.api.openapi_schemas import Both, ref
from server.api.replies import JSON_TYPE
from server.api.security import SAFE_METHODS

# What the edge may refuse before any handler sees the request.
_OF_EVERY_REQUEST = ("400", "408", "417", "421", "431")
_OF_EVERY_CHANGE = ("403",)
# A token may be good for nothing, wherever one is read.
_OF_EVERY_CALLER = ("401", "403")
# What somebody changes is written down first, on a disk that may be full or fail.
_OF_EVERY_KEPT_CHANGE = ("503", "507")
_OF_EVERY_BODY = ("413",)
# One that comes with Retry-After.
_LATER = frozenset({"429", "503"})

_MEANINGS = {
    "400": Both(
        "Параметр, тело или заголовок не понять",
        "A parameter, the body or a header cannot be understood",
    ),
    "401": Both("Сначала нужно назвать себя", "The caller has to say who it is first"),
    "403": Both("Понято и отклонено", "Understood, and refused"),
    "404": Both("Такого нет, или оно чужое", "There is none, or it is somebody else's"),
    "408": Both("Запрос приходит слишком медленно", "The request arrives too slowly"),
    "409": Both("Нынешнее состояние не позволяет", "The present state does not allow it"),
    "413": Both("Больше, чем принимается", "Larger than what is taken"),
    "415": Both("Такой вид или сжатие не принимается", "A kind or a packing that is not taken"),
    "417": Both("Такой Expect не поддерживается", "An Expect that is not supported"),
    "421": Both("Имя хоста не наше", "A Host that is not ours"),
    "422": Both("Ответ модели нельзя так записать", "The model's answer cannot be written so"),
    "429": Both("Исчерпана квота или частота", "A quota or a rate is used up"),
    "431": Both("Слишком большие заголовки", "Headers that are too large"),
    "500": Both("Сама модель дала сбой", "The model itself failed"),
    "503": Both("Сейчас некому ответить", "Nobody can answer at the moment"),
    "504": Both("Нет ответа в срок", "No answer in time"),
    "507": Both("На диске нет места", "No room on the disk"),
    "default": Both("Сбой самого сервиса", "A fault of the service itself"),
}
_ERROR = Both("Ошибка: причина и что делать", "An error: the cause and what to do")
_ERROR_LATER = Both("Ошибка: попробуйте позже", "An error: try again later")
_REQUEST_ID = {
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    "description": Both("Номер запроса", "The request's id"),
}
_RETRY_AFTER = {
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
    "description": Both("Через сколько секунд повторить", "Seconds to wait before the next try"),
}


def answer_components() -> dict[str, Any]:
    """Return the named answers that :func:`complete_answers` refers to."""
    headers = {"X-Request-Id": _REQUEST_ID}
    later = {**headers, "Retry-After": _RETRY_AFTER}
    return {
        "Error": {**json_answer(ref("Error"), _ERROR), "headers": headers},
        "ErrorLater": {**json_answer(ref("Error"), _ERROR_LATER), "headers": later},
        "InferenceError": {**json_answer(ref("InferenceError"), _ERROR), "headers": headers},
        "InferenceErrorLater": {
            **json_answer(ref("InferenceError"), _ERROR_LATER),
            "headers": later,
        },
    }


def json_answer(schema: dict[str, Any], description: Both) -> dict[str, Any]:
    """Return an answer whose body is JSON of that schema."""
    media = JSON_TYPE.partition(";")[0]
    return {"description": description, "content": {media: {"schema": schema}}}


def complete_answers(paths: dict[str, Any]) -> None:
    """Add to every operation of ``paths`` what the edge and all operations of its kind may answer.

    ``default`` stands for what nobody foresees, above all a fault of the service itself.
    """
    for item in paths.values():
        for method, operation in item.items():
            answers = operation["responses"]
            kind = "InferenceError" if "inference" in operation["tags"] else "Error"
            good = {status: answer for status, answer in answers.items() if status[0] == "2"}
            others = {status: answers[status] for status in answers.keys() - good}
            for status in (*_of_the_edge(method), *_of_its_kind(method, operation)):
                others.setdefault(status, {"$ref": ""})
            for status, answer in others.items():
                if "$ref" in answer:
                    name = f"{kind}Later" if status in _LATER else kind
                    others[status] = {
                        "$ref": f"#/components/responses/{name}",
                        "description": _MEANINGS.get(status, _ERROR),
                    }
            operation["responses"] = {**good, **dict(sorted(others.items()))}


def _of_the_edge(method: str) -> tuple[str, ...]:
    is_change = method.upper() not in SAFE_METHODS
    return (*_OF_EVERY_REQUEST, *(_OF_EVERY_CHANGE if is_change else ()), "default")


def _of_its_kind(method: str, operation: dict[str, Any]) -> tuple[str, ...]:
    is_kept = method.upper() not in SAFE_METHODS and "inference" not in operation["tags"]
    return (
        *(_OF_EVERY_CALLER if "security" in operation else ()),
        *(_OF_EVERY_KEPT_CHANGE if is_kept else ()),
        *(_OF_EVERY_BODY if "requestBody" in operation else ()),
    )
