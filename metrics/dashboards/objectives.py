"""Objectives: what was promised, what was kept, how fast the error budget goes."""

from __future__ import annotations

from metrics.dashboards.layout import Page, PanelBuilder, Placed
from metrics.dashboards.overview import CHOSEN, RUN, budget_left, burn_rate
from metrics.dashboards.panels import (
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Ask,
    Column,
    graph,
    rows,
    states,
)

_BURN = ((None, GREEN), (1, YELLOW), (6, ORANGE), (14.4, RED))
# Two runs of one model may follow each other within the window.
_LEGEND = "{{model}} {{environment}} {{run_id}}"
_LIMITS = "Пороги алертов для цели на 30 дней: 14,4 за час, 6 за шесть часов, 1 за трое суток."
_JOB = 'job="persephone-models"'
_RUN_ID = f'{CHOSEN}, run_id=~"$run_id"'


def page() -> Page:
    """Build the dashboard."""
    known = 'up{job="persephone-models"'
    return (
        Page(
            "persephone-slo",
            "SLO",
            "Цели доступности, остаток бюджета ошибок и скорость, с которой он тратится.",
            span="now-7d",
        )
        .choose("environment", "Окружение", f"label_values({known}}}, environment)")
        .choose("model", "Модель", f"label_values({known}}}, model)")
        .choose("run_id", "Запуск", f'label_values({known}, model=~"$model"}}, run_id)')
        .row("За 30 дней", [(24, _table())], height=9)
        .row("Бюджет ошибок", _budget(), height=9)
        .row("Задержка", [(12, _quick()), (12, _slow())], height=8)
        .row("Алерты", [(24, _alerts())], height=7)
    )


def _table() -> PanelBuilder:
    ratio = f"run_environment:inference_unavailable:ratio_rate30d{{{_RUN_ID}}}"
    hours = f"720 * ({budget_left(_RUN_ID)}) / ({burn_rate(_RUN_ID, '1h')} > 0)"
    windows = ("5m", "30m", "1h", "6h", "1d", "3d")
    return rows(
        "Цели и бюджеты",
        RUN,
        Column(
            "Цель",
            f"run_environment:inference_availability:objective{{{_RUN_ID}}}",
            "percentunit",
            decimals=1,
        ),
        Column("Достигнуто", f"1 - {ratio}", "percentunit", decimals=3),
        Column(
            "Запросы",
            f"run_environment:inference_requests:increase30d{{{_RUN_ID}}}",
            "short",
            decimals=0,
        ),
        Column(
            "Остаток бюджета",
            budget_left(_RUN_ID),
            "percentunit",
            ((None, RED), (0, ORANGE), (0.25, GREEN)),
            decimals=1,
        ),
        *(
            Column(f"Burn {window}", burn_rate(_RUN_ID, window), "short", _BURN)
            for window in windows
        ),
        Column("Хватит на, ч", f"{hours} > 0", "short", decimals=0),
        about=(
            "Бюджет ошибок: сколько запросов может закончиться 5xx без нарушения цели; где запросов не "
            "было, считаются пробные запросы сервиса, а без них опросы реплик. "
            "Burn rate: во сколько раз быстрее нормы он тратится; при 1 его хватает ровно на 30 дней. "
            "«Хватит на»: если и дальше будет как в последний час."
        ),
    )


def _budget() -> list[Placed]:
    return [
        (
            12,
            graph(
                "Burn rate",
                "short",
                Ask(burn_rate(_RUN_ID, "1h"), f"{_LEGEND}, 1h"),
                Ask(burn_rate(_RUN_ID, "6h"), f"{_LEGEND}, 6h"),
                about=_LIMITS,
                steps=_BURN,
            ),
        ),
        (
            12,
            graph(
                "Остаток бюджета",
                "percentunit",
                Ask(f"clamp_min({budget_left(_RUN_ID)}, -1)", _LEGEND),
                about="Ниже нуля цель за 30 дней нарушена; глубже -100 % не показано.",
                steps=((None, RED), (0, GREEN)),
                signed=True,
            ),
        ),
    ]


def _quick() -> PanelBuilder:
    """Show the share of quick answers beside the promised one.

    The promise carries the bucket in which they are counted, so the share is exact.
    """
    by = "sum by (run_id, model, environment)"
    promised = f"inference_latency_objective_ratio{{{_JOB}, {_RUN_ID}}}"
    buckets = f"inference_request_duration_seconds_bucket{{{_JOB}, {_RUN_ID}}}"
    count = f"inference_request_duration_seconds_count{{{_JOB}, {_RUN_ID}}}"
    quick = f"rate({buckets}[$__rate_interval]) and on (run_id, environment, le) {promised}"
    return graph(
        "Доля быстрых ответов",
        "percentunit",
        Ask(f"{by} ({quick}) / ({by} (rate({count}[$__rate_interval])) > 0)", _LEGEND),
        Ask(
            f"max by (run_id, model, environment, le) ({promised})",
            f"цель: {_LEGEND}, до {{{{le}}}} с",
        ),
        about="Быстрые: не дольше порога из цели запуска (GET /runs/{runId}/slo).",
    )


def _slow() -> PanelBuilder:
    def burning(window: str) -> str:
        return (
            f"run_environment:inference_slow:ratio_rate{window}{{{_RUN_ID}}}"
            " / (1 - run_environment:inference_latency:objective)"
        )

    return graph(
        "Burn rate медленных ответов",
        "short",
        Ask(burning("1h"), f"{_LEGEND}, 1h"),
        Ask(burning("6h"), f"{_LEGEND}, 6h"),
        about=f"Во сколько раз больше медленных ответов, чем обещано. {_LIMITS}",
        steps=_BURN,
    )


def _alerts() -> PanelBuilder:
    return states(
        "Когда срабатывали алерты",
        Ask(
            "max by (alertname, window, model, environment)"
            ' (ALERTS{alertname=~"Persephone.+", alertstate="firing"})',
            "{{alertname}} {{window}} {{model}} {{environment}}",
        ),
        {"1": ("сработал", RED)},
    )
