"""The GPUs: load, memory, heat, errors, and which run holds which."""

from __future__ import annotations

from metrics.dashboards.layout import Page, PanelBuilder, Placed
from metrics.dashboards.panels import GREEN, ORANGE, RED, Ask, Column, graph, number, rows, states

_JOB = 'job="persephone"'
_CHOSEN = f'{_JOB}, UUID=~"$gpu"'
_LEGEND = "{{gpu}} {{modelName}}"
_LEASE = f"persephone_gpu_lease{{{_CHOSEN}}}"
HEALTH = {"0": ("не работает", RED), "1": ("исправен", GREEN)}


def page() -> Page:
    """Build the dashboard."""
    return (
        Page("persephone-gpu", "GPU", "Загрузка, память, температура и ошибки GPU (имена DCGM).")
        .choose("gpu", "GPU", f"label_values(persephone_gpu_healthy{{{_JOB}}}, UUID)")
        .row("Состояние", _state(), height=4)
        .row("Загрузка", _load(), height=8)
        .row("Тепло и ошибки", _heat(), height=8)
        .row("Кто занимает", [(24, _leases())], height=6)
    )


def _state() -> list[Placed]:
    return [
        (
            6,
            number(
                "Драйвер",
                "short",
                f"max(persephone_gpu_available{{{_JOB}}})",
                words={"0": ("GPU нет", ORANGE), "1": ("GPU видны", GREEN)},
            ),
        ),
        (6, number("Всего", "short", f"sum(persephone_gpus{{{_JOB}}})")),
        (6, number("Свободно", "short", f"sum(persephone_gpus_free{{{_JOB}}})")),
        (
            6,
            number(
                "Неисправны",
                "short",
                f"count(persephone_gpu_healthy{{{_CHOSEN}}} == 0) or vector(0)",
                steps=((None, GREEN), (1, RED)),
            ),
        ),
    ]


def _load() -> list[Placed]:
    used, free = f"DCGM_FI_DEV_FB_USED{{{_CHOSEN}}}", f"DCGM_FI_DEV_FB_FREE{{{_CHOSEN}}}"
    return [
        (8, graph("Загрузка GPU", "percent", Ask(f"DCGM_FI_DEV_GPU_UTIL{{{_CHOSEN}}}", _LEGEND))),
        (
            8,
            graph(
                "Память занята",
                "percentunit",
                Ask(f"{used} / ({used} + {free} > 0)", f"{_LEGEND} {{{{GPU_I_ID}}}}"),
            ),
        ),
        (
            8,
            graph(
                "Обмен с памятью",
                "percent",
                Ask(f"DCGM_FI_DEV_MEM_COPY_UTIL{{{_CHOSEN}}}", _LEGEND),
                about="Доля времени, в которую память читали или писали.",
            ),
        ),
    ]


def _heat() -> list[Placed]:
    return [
        (6, graph("Температура", "celsius", Ask(f"DCGM_FI_DEV_GPU_TEMP{{{_CHOSEN}}}", _LEGEND))),
        (6, graph("Мощность", "watt", Ask(f"DCGM_FI_DEV_POWER_USAGE{{{_CHOSEN}}}", _LEGEND))),
        (
            6,
            graph(
                "Последний XID",
                "short",
                Ask(f"DCGM_FI_DEV_XID_ERRORS{{{_CHOSEN}}}", _LEGEND),
                about="Номер последней ошибки драйвера; 0: ошибок не было. 79: карта потеряна.",
            ),
        ),
        (
            6,
            states(
                "Исправность",
                Ask(f"persephone_gpu_healthy{{{_CHOSEN}}}", f"{_LEGEND} {{{{GPU_I_ID}}}}"),
                HEALTH,
            ),
        ),
    ]


def _leases() -> PanelBuilder:
    # Several instances of one card may be held by several runs: the card is the side of one.
    columns = [
        Column(title, f"{_LEASE} * on (UUID) {_of_card(name)}", unit, decimals=0)
        for title, name, unit in (
            ("Загрузка", "GPU_UTIL", "percent"),
            ("Температура", "GPU_TEMP", "celsius"),
            ("Мощность", "POWER_USAGE", "watt"),
        )
    ]
    memory = f"{_LEASE} * on (UUID, GPU_I_ID) {_of_card('FB_USED')}"
    columns.append(Column("Память", memory, "mbytes", decimals=0))
    return rows(
        "GPU по запускам",
        {
            "model": "Модель",
            "run_id": "Запуск",
            "gpu": "Номер",
            "modelName": "GPU",
            "UUID": "UUID",
            "GPU_I_ID": "MIG",
        },
        *(
            column._replace(
                expression="max by (model, run_id, gpu, modelName, UUID, GPU_I_ID)"
                f" ({column.expression})"
            )
            for column in columns
        ),
        about="Показатели карты, которую держит запуск. Свободных GPU здесь нет.",
    )


def _of_card(name: str) -> str:
    return f"group_left (gpu, modelName) DCGM_FI_DEV_{name}{{{_CHOSEN}}}"
