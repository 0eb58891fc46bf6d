"""Everything at a glance: is it up, who asks, what fails, what fires."""

from __future__ import annotations

from metrics.dashboards.layout import Page, PanelBuilder, Placed
from metrics.dashboards.panels import (
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Ask,
    Column,
    graph,
    number,
    rows,
)

UP = {"0": ("не отвечает", RED), "1": ("работает", GREEN)}
RUN = {"model": "Модель", "environment": "Окружение", "run_id": "Запуск"}
CHOSEN = 'environment=~"$environment", model=~"$model"'
_JOB = 'job="persephone-models"'
_BY = "run_id, model, environment"


def budget_left(selector: str) -> str:
    """Return which share of the month's error budget is left; negative once it is overspent."""
    return (
        f"1 - run_environment:inference_unavailable:ratio_rate30d{{{selector}}}"
        " / (1 - run_environment:inference_availability:objective)"
    )


def burn_rate(selector: str, window: str) -> str:
    """Return how many times faster than it may the error budget goes."""
    return (
        f"run_environment:inference_unavailable:ratio_rate{window}{{{selector}}}"
        " / (1 - run_environment:inference_availability:objective)"
    )


def p95(selector: str, by: str = "", window: str = "$__rate_interval") -> str:
    """Return the 95th percentile, of all together or ``by`` labels; nothing where nobody asked."""
    labels = f"{by}, le" if by else "le"
    buckets = f"inference_request_duration_seconds_bucket{{{_JOB}, {selector}}}"
    return f"histogram_quantile(0.95, sum by ({labels}) (rate({buckets}[{window}]))) >= 0"


def page() -> Page:
    """Build the dashboard."""
    return (
        Page("persephone-overview", "Обзор", "Все модели во всех окружениях и сам сервис.")
        .choose("environment", "Окружение", f"label_values(up{{{_JOB}}}, environment)")
        .choose("model", "Модель", f"label_values(up{{{_JOB}}}, model)")
        .row("Состояние", _state(), height=4)
        .row("Модели", [(24, _models())], height=9)
        .row("Запросы", _traffic(), height=8)
        .row("Алерты", [(24, _alerts())], height=6)
    )


def _state() -> list[Placed]:
    replicas = f'up{{{_JOB}, replica!="gateway", {CHOSEN}}}'
    requests = f"run_environment:inference_requests:rate5m{{{CHOSEN}}}"
    errors = f"run_environment:inference_errors:rate5m{{{CHOSEN}}}"
    return [
        (4, number("Сервис", "short", 'max(up{job="persephone"})', words=UP)),
        (
            4,
            number(
                "Алерты",
                "short",
                'count(ALERTS{alertname=~"Persephone.+", alertstate="firing"}) or vector(0)',
                steps=((None, GREEN), (1, RED)),
            ),
        ),
        (
            4,
            number(
                "Реплики без ответа",
                "short",
                f"count({replicas} == 0) or vector(0)",
                about="Реплики, которые должны отвечать и не отдают метрики.",
                steps=((None, GREEN), (1, ORANGE)),
            ),
        ),
        (
            4,
            number(
                "Неудачные развёртывания",
                "short",
                'sum(persephone_deployments{job="persephone", phase="Failed"})',
                about="Новейшая версия не смогла начать отвечать.",
                steps=((None, GREEN), (1, ORANGE)),
            ),
        ),
        (4, number("RPS", "reqps", f"sum({requests}) or vector(0)", decimals=2)),
        (
            4,
            number(
                "Ошибки",
                "percentunit",
                f"sum({errors}) / (sum({requests}) > 0) or vector(0)",
                about="Доля ответов 5xx за 5 минут; ошибки вызывающего (4xx) не считаются.",
                steps=((None, GREEN), (0.001, YELLOW), (0.01, RED)),
                decimals=2,
            ),
        ),
    ]


def _models() -> PanelBuilder:
    return rows(
        "Модели по окружениям",
        RUN,
        Column("RPS", f"run_environment:inference_requests:rate5m{{{CHOSEN}}}", "reqps"),
        Column(
            "Ошибки",
            f"run_environment:inference_errors:ratio_rate5m{{{CHOSEN}}}",
            "percentunit",
            ((None, GREEN), (0.001, YELLOW), (0.01, RED)),
        ),
        Column(
            "p95",
            f"{p95(CHOSEN, _BY, '5m')} or run_environment:inference_requests:rate5m{{{CHOSEN}}} * 0",
            "s",
            decimals=1,
        ),
        Column(
            "Доступность, 30 д",
            f"1 - run_environment:inference_unavailable:ratio_rate30d{{{CHOSEN}}}",
            "percentunit",
            decimals=3,
        ),
        Column(
            "Остаток бюджета",
            budget_left(CHOSEN),
            "percentunit",
            ((None, RED), (0, ORANGE), (0.25, GREEN)),
            decimals=1,
        ),
        Column(
            "Burn rate, 1 ч",
            burn_rate(CHOSEN, "1h"),
            "short",
            ((None, GREEN), (1, YELLOW), (6, ORANGE), (14.4, RED)),
        ),
        about=(
            "RPS, ошибки и p95 за 5 минут, нули без запросов. Доступность и бюджет за 30 дней: по "
            "запросам, без них по пробным запросам сервиса, без тех по опросам реплик. Burn rate: во сколько раз быстрее нормы тратится бюджет ошибок."
        ),
    )


def _traffic() -> list[Placed]:
    requests = f"inference_requests_total{{{_JOB}, {CHOSEN}}}"
    errors = f'inference_requests_total{{{_JOB}, code="5xx", {CHOSEN}}}'
    rate = "sum by (environment) (rate({}[$__rate_interval]))"
    return [
        (
            8,
            graph("RPS", "reqps", Ask(rate.format(requests), "{{environment}}"), stacked=True),
        ),
        (
            8,
            graph(
                "Ошибки",
                "percentunit",
                Ask(
                    f"{rate.format(errors)} / ({rate.format(requests)} > 0)"
                    f" or {rate.format(requests)} * 0",
                    "{{environment}}",
                ),
                about="Доля ответов 5xx.",
            ),
        ),
        (
            8,
            graph(
                "p95",
                "s",
                Ask(p95(CHOSEN, "environment"), "{{environment}}"),
                about="Из слитых гистограмм всех реплик; перцентили не усредняются.",
            ),
        ),
    ]


def _alerts() -> PanelBuilder:
    return rows(
        "Сработавшие и ожидающие алерты",
        {
            "alertname": "Алерт",
            "alertstate": "Состояние",
            "severity": "Важность",
            "environment": "Окружение",
            "model": "Модель",
            "window": "Окно",
        },
        Column(
            "Сколько",
            "sum by (alertname, alertstate, severity, environment, model, window)"
            ' (ALERTS{alertname=~"Persephone.+"})',
            "short",
            decimals=0,
        ),
        about="Что делать с каждым, говорит docs/operations.md.",
    )
