"""One model: its requests, errors, latency, replicas and versions."""

from __future__ import annotations

from metrics.dashboards.layout import Page, PanelBuilder, Placed
from metrics.dashboards.overview import p95
from metrics.dashboards.panels import (
    GREEN,
    RED,
    YELLOW,
    Ask,
    Column,
    graph,
    heat,
    number,
    rows,
    states,
)

_RUN = 'environment=~"$environment", model=~"$model", run_id=~"$run_id"'
_CHOSEN = f'{_RUN}, replica=~"$replica"'
_JOB = 'job="persephone-models"'
_REQUESTS = f"inference_requests_total{{{_JOB}, {_CHOSEN}}}"
_BUCKETS = f"inference_request_duration_seconds_bucket{{{_JOB}, {_CHOSEN}}}"
_INFO = f"inference_model_info{{{_JOB}, {_CHOSEN}}}"
UP = {"0": ("не отвечает", RED), "1": ("отвечает", GREEN)}


def page() -> Page:
    """Build the dashboard."""
    known = f"up{{{_JOB}}}"
    model = f'{_JOB}, environment=~"$environment", model=~"$model"'
    return (
        Page("persephone-model", "Модель", "Запросы, ошибки и задержки одной модели (RED).")
        .choose("environment", "Окружение", f"label_values({known}, environment)")
        .choose(
            "model",
            "Модель",
            f'label_values(up{{{_JOB}, environment=~"$environment"}}, model)',
        )
        .choose("run_id", "Запуск", f"label_values(up{{{model}}}, run_id)")
        .choose("replica", "Реплика", f"label_values(up{{{model}}}, replica)")
        .mark(
            "Новая версия",
            f"count by (environment, model, version) ({_INFO} unless on (environment, model, version)"
            f" max_over_time({_INFO}[1h] offset 1m))",
            "{{model}} {{version}} в {{environment}}",
        )
        .row("Сейчас, как на странице", _page(), height=4)
        .row("Запросы и ошибки", _requests(), height=8)
        .row("Задержка", _latency(), height=9)
        .row("Реплики", _replicas(), height=8)
        .row("Пробные запросы", [(24, _probes())], height=6)
    )


def _rate(series: str, by: str) -> str:
    return f"sum by ({by}) (rate({series}[$__rate_interval]))"


def _page() -> list[Placed]:
    """Show what the summary shows, by the same: zeros without requests, and never nothing."""
    chosen = f"{_JOB}, {_RUN}"
    errors = f'inference_requests_total{{{_JOB}, code="5xx", {_RUN}}}'
    requests = f"inference_requests_total{{{chosen}}}"
    return [
        (
            5,
            number("RPS", "reqps", f"sum(rate({requests}[5m])) or vector(0)", decimals=2),
        ),
        (
            5,
            number(
                "Ошибки",
                "percentunit",
                f"sum(rate({errors}[5m])) / (sum(rate({requests}[5m])) > 0) or vector(0)",
                about="Доля ответов 5xx за 5 минут; без запросов 0.",
                steps=((None, GREEN), (0.001, YELLOW), (0.01, RED)),
                decimals=2,
            ),
        ),
        (
            5,
            number(
                "p95",
                "s",
                f"{p95(_RUN, window='5m')} or vector(0)",
                about="За 5 минут; без запросов 0.",
                decimals=1,
            ),
        ),
        (
            5,
            number(
                "Доступность, 30 д",
                "percentunit",
                f"1 - ({_unavailable()})",
                about=(
                    "Доля запросов без 5xx; если запросов не было, доля удачных пробных запросов "
                    "сервиса, а без них опросов реплик."
                ),
                decimals=3,
            ),
        ),
        (
            4,
            number(
                "Отвечают реплик",
                "short",
                f'sum(up{{{_JOB}, replica!="gateway", {_RUN}}}) or vector(0)',
                steps=((None, RED), (1, GREEN)),
            ),
        ),
    ]


def _unavailable() -> str:
    """Return what was not there for its users, of the first basis that there is anything of."""
    shares = [("run_environment:inference_{}:increase30d", ("errors", "requests"), _RUN)]
    shares += [
        (
            "run_environment_basis:inference_{}:increase30d",
            ("checks_failed", "checks"),
            f'basis="{basis}", {_RUN}',
        )
        for basis in ("probes", "scrapes")
    ]
    return " or ".join(
        f"sum({name.format(bad)}{{{chosen}}}) / (sum({name.format(all_of)}{{{chosen}}}) > 0)"
        for name, (bad, all_of), chosen in shares
    )


def _requests() -> list[Placed]:
    errors = f'inference_requests_total{{{_JOB}, code="5xx", {_CHOSEN}}}'
    overloaded = f"inference_requests_overloaded_total{{{_JOB}, {_CHOSEN}}}"
    return [
        (
            8,
            graph(
                "RPS по классам ответа",
                "reqps",
                Ask(_rate(_REQUESTS, "code"), "{{code}}"),
                about="4xx: ошибка вызывающего, 5xx: модели или сервиса.",
                stacked=True,
            ),
        ),
        (
            8,
            graph(
                "Ошибки",
                "percentunit",
                Ask(
                    f"sum(rate({errors}[$__rate_interval]))"
                    f" / (sum(rate({_REQUESTS}[$__rate_interval])) > 0)"
                    f" or sum(rate({_REQUESTS}[$__rate_interval])) * 0",
                    "5xx, доля",
                ),
                Ask(
                    f"sum(rate({overloaded}[$__rate_interval]))"
                    f" / (sum(rate({_REQUESTS}[$__rate_interval])) > 0)"
                    f" or sum(rate({_REQUESTS}[$__rate_interval])) * 0",
                    "в том числе 503 и 504: некому или некогда ответить",
                ),
                about="Доля ответов 5xx. Остальные 5xx: ошибки самой модели.",
            ),
        ),
        (
            8,
            graph(
                "Запросы в работе",
                "short",
                Ask(
                    f"sum by (replica) (inference_requests_in_progress{{{_JOB}, {_CHOSEN}}})",
                    "реплика {{replica}}",
                ),
                about="Растёт, когда модель не успевает.",
                stacked=True,
            ),
        ),
    ]


def _latency() -> list[Placed]:
    by_le = _rate(_BUCKETS, "le")
    return [
        (
            12,
            graph(
                "Перцентили",
                "s",
                *(
                    Ask(f"histogram_quantile({share}, {by_le}) >= 0", name)
                    for share, name in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))
                ),
                about="Время от прихода запроса до записи ответа, очередь включена.",
                logarithmic=True,
            ),
        ),
        (
            12,
            heat(
                "Распределение",
                "s",
                by_le,
                about="Сколько запросов в секунду попало в каждый промежуток времени.",
            ),
        ),
    ]


def _replicas() -> list[Placed]:
    own = 'replica!="gateway"'
    return [
        (
            6,
            states(
                "Реплики",
                Ask(
                    f"up{{{_JOB}, {own}, {_CHOSEN}}}",
                    "{{model}} {{environment}} {{version}}/{{replica}}",
                ),
                UP,
                about="Модель, окружение, версия и номер реплики.",
            ),
        ),
        (
            6,
            graph(
                "RPS по репликам",
                "reqps",
                Ask(_rate(_REQUESTS, "replica"), "реплика {{replica}}"),
            ),
        ),
        (
            6,
            graph(
                "p95 по репликам",
                "s",
                Ask(p95(_CHOSEN, "replica"), "реплика {{replica}}"),
            ),
        ),
        (
            6,
            rows(
                "Что развёрнуто",
                {
                    "environment": "Окружение",
                    "version": "Версия",
                    "replica": "Реплика",
                    "framework": "Фреймворк",
                    "framework_version": "Его версия",
                },
                Column(
                    "Перезапуски за час",
                    "max by (environment, version, replica, framework, framework_version) (changes("
                    f"process_start_time_seconds{{{_JOB}, {own}, {_CHOSEN}}}[1h])"
                    " * on (run_id, environment, version, replica)"
                    " group_left (framework, framework_version)"
                    f" inference_model_info{{{_JOB}, {own}, {_CHOSEN}}})",
                    "short",
                    decimals=0,
                ),
            ),
        ),
    ]


def _probes() -> PanelBuilder:
    probes = f"inference_probes_total{{{_JOB}, {_CHOSEN}}}"
    return graph(
        "Пробные запросы по исходу",
        "short",
        Ask(
            f"sum by (environment, result) (increase({probes}[$__rate_interval]))",
            "{{environment}} {{result}}",
        ),
        about="Сервис спрашивает модель сам, пока к ней нет запросов; в показатели они не входят.",
        stacked=True,
    )
