"""The service itself: its API, preparations, roll-outs, disk and process."""

from __future__ import annotations

from metrics.dashboards.layout import Page, Placed
from metrics.dashboards.panels import GREEN, ORANGE, RED, Ask, graph, number

_JOB = 'job="persephone"'
_ROUTE = f'{_JOB}, route=~"$route"'


def page() -> Page:
    """Build the dashboard."""
    return (
        Page("persephone-service", "Сервис", "API, подготовки, развёртывания, диск и процесс.")
        .choose(
            "route", "Маршрут", f"label_values(persephone_http_requests_total{{{_JOB}}}, route)"
        )
        .row("Состояние", _state(), height=4)
        .row("API", _api(), height=8)
        .row("Подготовка", _preparations(), height=8)
        .row("Развёртывание", _deployments(), height=8)
        .row("Сбор метрик", _scrapes(), height=8)
        .row("Ресурсы", _resources(), height=8)
    )


def _quantile(name: str, by: str, share: str = "0.95", selector: str = _JOB) -> str:
    rates = f"rate({name}_bucket{{{selector}}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({by}, le) ({rates})) >= 0"


def _rate(name: str, by: str, selector: str = _JOB) -> str:
    return f"sum by ({by}) (rate({name}{{{selector}}}[$__rate_interval]))"


def _state() -> list[Placed]:
    free = f"persephone_disk_free_bytes{{{_JOB}}}"
    kept = f"persephone_disk_kept_bytes{{{_JOB}}}"
    return [
        (4, number("Запуски", "short", f"sum(persephone_runs{{{_JOB}}})")),
        (
            4,
            number(
                "Отвечают",
                "short",
                f'sum(persephone_deployments{{{_JOB}, phase="Succeeded"}})',
                about="Развёртывания, новейшая версия которых отвечает.",
            ),
        ),
        (
            4,
            number(
                "Разворачиваются",
                "short",
                f'sum(persephone_deployments{{{_JOB}, phase="Running"}})',
            ),
        ),
        (4, number("Опрашивается реплик", "short", f"sum(persephone_scrape_targets{{{_JOB}}})")),
        (
            4,
            number(
                "Свободно на диске",
                "bytes",
                f"min({free} - {kept})",
                about="Сверх того, что сервис оставляет свободным.",
                steps=((None, RED), (0, ORANGE), (10e9, GREEN)),
                decimals=1,
            ),
        ),
        (
            4,
            number(
                "Работает",
                "s",
                f"time() - max(process_start_time_seconds{{{_JOB}}})",
                about="Время с запуска процесса.",
            ),
        ),
    ]


def _api() -> list[Placed]:
    requests, failed = "persephone_http_requests_total", f'{_ROUTE}, code=~"5.."'
    total = _rate(requests, "route", _ROUTE)
    return [
        (
            8,
            graph(
                "Запросы по маршрутам",
                "reqps",
                Ask(total, "{{route}}"),
                about="Предсказания через шлюз тоже здесь: /{env}/v2/…",
            ),
        ),
        (
            8,
            graph(
                "Ошибки 5xx по маршрутам",
                "percentunit",
                Ask(
                    f"{_rate(requests, 'route', failed)} / ({total} > 0) or {total} * 0",
                    "{{route}}",
                ),
            ),
        ),
        (
            8,
            graph(
                "p95 по маршрутам",
                "s",
                Ask(
                    _quantile("persephone_http_request_duration_seconds", "route", selector=_ROUTE),
                    "{{route}}",
                ),
                logarithmic=True,
            ),
        ),
    ]


def _preparations() -> list[Placed]:
    return [
        (
            8,
            graph(
                "Длительность шагов, p95",
                "s",
                Ask(_quantile("persephone_prepare_step_duration_seconds", "step"), "{{step}}"),
                logarithmic=True,
            ),
        ),
        (
            8,
            graph(
                "Неудачные шаги",
                "short",
                Ask(
                    f"sum by (step) (increase(persephone_prepare_steps_total{{{_JOB},"
                    ' status="Failed"}[$__rate_interval]))',
                    "{{step}}",
                ),
                stacked=True,
            ),
        ),
        (
            8,
            graph(
                "Загрузки по исходу",
                "short",
                Ask(
                    f"sum by (result) (increase(persephone_uploads_total{{{_JOB}}}[$__rate_interval]))",
                    "{{result}}",
                ),
                stacked=True,
            ),
        ),
    ]


def _deployments() -> list[Placed]:
    return [
        (
            6,
            graph(
                "Развёртывания по исходу",
                "short",
                Ask(
                    "sum by (environment, result) (increase("
                    f"persephone_deploys_total{{{_JOB}}}[$__rate_interval]))",
                    "{{environment}} {{result}}",
                ),
                stacked=True,
            ),
        ),
        (
            6,
            graph(
                "До начала ответов, p95",
                "s",
                Ask(
                    _quantile("persephone_deploy_duration_seconds", "environment"),
                    "{{environment}}",
                ),
            ),
        ),
        (
            6,
            graph(
                "Перезапуски реплик",
                "short",
                Ask(
                    "sum by (environment) (increase("
                    f"persephone_replica_restarts_total{{{_JOB}}}[$__rate_interval]))",
                    "{{environment}}",
                ),
                stacked=True,
            ),
        ),
        (
            6,
            graph(
                "Шаги reconcile, p95",
                "s",
                Ask(_quantile("persephone_reconcile_duration_seconds", "action"), "{{action}}"),
                Ask(
                    f"sum(increase(persephone_reconcile_failures_total{{{_JOB}}}[$__rate_interval]))",
                    "неожиданные ошибки, штук",
                ),
                logarithmic=True,
            ),
        ),
    ]


def _scrapes() -> list[Placed]:
    return [
        (
            8,
            graph(
                "Опросы реплик",
                "reqps",
                Ask(_rate("persephone_scrapes_total", "result"), "{{result}}"),
                stacked=True,
            ),
        ),
        (
            8,
            graph(
                "Опрос реплики, p95",
                "s",
                Ask(_quantile("persephone_scrape_duration_seconds", "job"), "p95"),
            ),
        ),
        (
            8,
            graph(
                "Источник показателей отвечает",
                "short",
                Ask(f"persephone_metrics_backend_up{{{_JOB}}}", "{{backend}}"),
                about="embedded: встроенный монитор; prometheus: 0, если он не настроен.",
            ),
        ),
    ]


def _resources() -> list[Placed]:
    return [
        (
            6,
            graph(
                "Память процесса",
                "bytes",
                Ask(f"process_resident_memory_bytes{{{_JOB}}}", "RSS"),
            ),
        ),
        (
            6,
            graph(
                "CPU процесса",
                "percentunit",
                Ask(f"rate(process_cpu_seconds_total{{{_JOB}}}[$__rate_interval])", "ядра"),
                about="1: занято одно ядро. Процессы моделей сюда не входят.",
            ),
        ),
        (
            6,
            graph(
                "Место на диске",
                "bytes",
                Ask(f"persephone_stored_bytes{{{_JOB}}}", "{{kind}}"),
                Ask(f"persephone_stored_limit_bytes{{{_JOB}}}", "предел артефактов и моделей"),
                Ask(f"persephone_disk_free_bytes{{{_JOB}}}", "свободно"),
            ),
        ),
        (
            6,
            graph(
                "Отказы",
                "short",
                Ask(
                    "sum by (reason) (increase("
                    f"persephone_refusals_total{{{_JOB}}}[$__rate_interval])) > 0"
                    f" or sum(increase(persephone_refusals_total{{{_JOB}}}[$__rate_interval])) * 0",
                    "{{reason}}",
                ),
                about="Квоты, нет места, слишком медленно, слишком много; по коду ответа.",
                stacked=True,
            ),
        ),
    ]
