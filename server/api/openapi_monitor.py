"""Monitoring and objectives as OpenAPI: their operations and the shapes of their JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metrics.objectives import BURN_SECONDS
from metrics.slo import DATA_STATUSES
from server.api.openapi_schemas import (
    RUN_ID_PATTERN,
    Both,
    listed,
    number,
    percent,
    ref,
    shape,
    time,
)
from server.api.openapi_timeline import tagged
from server.promises import LATENCY_MS, PERCENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.settings import Settings

_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$", "examples": ["5m", "1h30m"]}
_Operation = dict[str, Any]


def monitoring(
    operation: Callable[..., _Operation], run: _Operation, env: _Operation, run_in_path: _Operation
) -> dict[str, Any]:
    """Return the paths; ``operation`` makes one, the others are parameters."""
    window, step = _query("window", _DURATION), _query("step", _DURATION)
    explained = _query("explain", {"type": "boolean"})
    summary = operation(
        "monitorSummary",
        Both("Показатели RED и SLO", "RED and SLO figures"),
        "MonitorSummary",
        [run, env, window, explained],
    )
    series = operation(
        "monitorSeries",
        Both("Показатели во времени, для графиков", "Figures over time, for charts"),
        "MonitorSeries",
        [run, env, window, step],
    )
    source = {"schema": {"type": "string", "enum": ["prometheus", "embedded"]}}
    for one in (summary, series):
        one["responses"]["200"]["headers"] = {"X-Metrics-Source": source}
    replace = operation(
        "replaceObjectives",
        Both("Задать цели уровня обслуживания запуска", "Set the run's service level objectives"),
        "Objectives",
        [run_in_path],
        curl="curl -b cookies -X PUT {base}{path} -d "
        '\'{"objectives":{"prod":{"availability":99.95,"window":"7d"}}}\'',
    )
    replace["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": ref("ObjectivesWish")}},
    }
    show = operation(
        "showObjectives",
        Both("Цели уровня обслуживания", "Service level objectives"),
        "Objectives",
        [run_in_path],
    )
    reset = operation(
        "resetObjectives",
        Both("Вернуть цели из настроек", "Go back to the objectives of the settings"),
        "Objectives",
        [run_in_path],
    )
    return {
        "/monitor/summary": {"get": tagged(summary)},
        "/monitor/series": {"get": series},
        "/runs/{runId}/slo": {"get": show, "put": replace, "delete": reset},
    }


def monitoring_schemas(settings: Settings) -> dict[str, Any]:
    """Return the schemas of these paths."""
    run_id = {"type": "string", "pattern": RUN_ID_PATTERN}
    environment = {"type": "string", "enum": list(settings.environments)}
    milliseconds = number("95-й процентиль, мс", "95th percentile in ms")
    return {
        "MonitorSummary": shape(
            "runId red slo",
            runId=run_id,
            environment=environment,
            window=_DURATION,
            red=shape(
                "rps errorsPercent p95DurationMs",
                rps=number("Запросов в секунду за минуту", "Requests a second over a minute"),
                errorsPercent=percent("Доля ошибок", "Share of errors"),
                p95DurationMs=milliseconds,
            ),
            slo=shape(
                "availability latencyP95Ms",
                availability=percent("Доступность", "Availability"),
                latencyP95Ms=milliseconds,
            ),
            dataStatus={"type": "string", "enum": list(DATA_STATUSES)},
            errorsByFault=shape(
                "clientPercent modelPercent overloadPercent",
                clientPercent=percent("Ошибки клиента (4xx)", "The client's mistakes (4xx)"),
                modelPercent=percent("Ошибки модели (5xx)", "The model's errors (5xx)"),
                overloadPercent=percent("Перегрузка (503, 504)", "Overload (503, 504)"),
            ),
            unreachable=listed(
                shape(
                    "environment replica version",
                    environment=environment,
                    replica={"type": "string"},
                    version={"type": "string"},
                )
            ),
            objectives=listed(ref("Standing")),
            explain={"type": "object", "additionalProperties": ref("Explanation")},
            updatedAt=time("К какому времени относится", "The time it is of"),
        ),
        "Standing": shape(
            "environment window basis count watchedPercent availability latency",
            environment=environment,
            window=_DURATION,
            basis={"type": "string", "enum": ["requests", "probes", "scrapes"]},
            count=number("Сколько их было", "How many there were"),
            watchedPercent=percent(
                "Наблюдалась часть окна", "Share of the window that was watched"
            ),
            availability=ref("Level"),
            latency=ref("Level"),
        ),
        "Level": _level(),
        "Explanation": shape(
            "promql window samples requests source",
            promql={"type": "string"},
            window=_DURATION,
            at=time("К какому времени относится", "The time it is of"),
            samples=number("Опросов реплик в окне", "Scrapes of replicas in the window"),
            requests=number("Запросов в окне", "Requests in the window"),
            watchedSeconds=number("Окно наблюдалось, с", "Watched of the window, in s"),
            ageSeconds=number("Возраст последнего опроса, с", "Age of the newest scrape in s"),
            source={"type": "string", "enum": ["prometheus", "embedded"]},
        ),
        "MonitorSeries": shape(
            "runId window step rateWindow points",
            runId=run_id,
            environment=environment,
            window=_DURATION,
            step=_DURATION,
            rateWindow=_DURATION,
            points=listed(_point()),
        ),
        "Objectives": shape(
            "runId objectives",
            runId=run_id,
            objectives={"type": "object", "additionalProperties": _promised(source=True)},
        ),
        "ObjectivesWish": shape(
            "objectives",
            objectives={"type": "object", "additionalProperties": _promised(source=False)},
        ),
    }


def _level() -> dict[str, Any]:
    rate = number("Во сколько раз быстрее допустимого", "How many times faster than allowed")
    return shape(
        "objectivePercent budgetLeftPercent burnRates",
        objectivePercent=percent("Цель", "The objective"),
        attainedPercent=percent("Достигнуто", "Attained"),
        budgetLeftPercent=number("Остаток бюджета ошибок, %", "Error budget left in percent"),
        burnRates=shape(" ".join(BURN_SECONDS), **dict.fromkeys(BURN_SECONDS, rate)),
        exhaustedInSeconds=number("Через сколько кончится бюджет, с", "Until the budget is gone"),
        thresholdMs=number("Порог, мс", "The threshold in ms"),
        countedAtMs=number("Граница, по которой считается, мс", "The bucket counted at, in ms"),
    )


def _point() -> dict[str, Any]:
    latency = number("Процентиль, мс", "Percentile in ms")
    return shape(
        "at",
        at=time("Конец отрезка", "End of the stretch"),
        rps=number("Запросов в секунду", "Requests a second"),
        errorsPercent=percent("Доля ошибок", "Share of errors"),
        p50Ms=latency,
        p95Ms=latency,
        p99Ms=latency,
        inFlight=number("Запросов одновременно, в среднем", "Requests under way, on average"),
    )


def _promised(*, source: bool) -> dict[str, Any]:
    def bounded(bounds: tuple[float, float], ru: str, en: str) -> dict[str, Any]:
        return number(ru, en, minimum=bounds[0], maximum=bounds[1])

    fields = {
        "availability": bounded(PERCENT, "Запросов без ошибок, %", "Requests without error in %"),
        "latencyThresholdMs": bounded(LATENCY_MS, "Порог, мс", "The threshold in ms"),
        "latencyShare": bounded(PERCENT, "Ответов в пределах порога, %", "Answers within it in %"),
        "window": _DURATION,
    }
    if source:
        fields["source"] = {"type": "string", "enum": ["run", "settings"]}
    return shape(" ".join(fields) if source else "", **fields)


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}
