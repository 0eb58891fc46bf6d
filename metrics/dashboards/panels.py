"""The kinds of panels that the dashboards use, each with one way to look."""

from __future__ import annotations

from typing import NamedTuple

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from metrics.dashboards.layout import SOURCE

GREEN, YELLOW, ORANGE, RED = "green", "yellow", "orange", "red"

Steps = tuple[tuple[float | None, str], ...]
"""A colour from a value on; the first one has no value."""


class Ask(NamedTuple):
    """One expression and the legend of what it returns."""

    expression: str
    legend: str = ""


class Column(NamedTuple):
    """One expression whose value is a column of a table."""

    title: str
    expression: str
    unit: str
    steps: Steps = ()
    decimals: int = 2


def _query(ask: Ask, place: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .datasource(SOURCE)
        .ref_id(chr(ord("A") + place))
        .expr(ask.expression)
        .legend_format(ask.legend)
    )


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(made)


def graph(
    title: str,
    unit: str,
    *asks: Ask,
    about: str = "",
    steps: Steps = (),
    stacked: bool = False,
    logarithmic: bool = False,
    signed: bool = False,
) -> timeseries.Panel:
    """Draw lines over time, from zero unless ``signed``; ``steps`` are drawn as lines across."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
        .targets([_query(ask, place).range() for place, ask in enumerate(asks)])
    )
    # A logarithm has no zero.
    if not signed and not logarithmic:
        panel.min(0)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if logarithmic:
        panel.scale_distribution(
            common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        )
    if steps:
        panel.thresholds(_thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE)
        )
    return panel


def number(
    title: str,
    unit: str,
    expression: str,
    *,
    about: str = "",
    steps: Steps = ((None, GREEN),),
    decimals: int = 0,
    words: dict[str, tuple[str, str]] | None = None,
) -> stat.Panel:
    """Show one number of now, coloured by ``steps``; ``words`` are shown in place of values."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .decimals(decimals)
        .thresholds(_thresholds(steps))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("нет данных")
        .targets([_query(Ask(expression), 0).instant()])
    )
    if words:
        panel.mappings([_words(words)])
    return panel


def _words(words: dict[str, tuple[str, str]]) -> ValueMap:
    shown = {
        value: ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(words.items())
    }
    return ValueMap(options=shown)


def states(
    title: str, ask: Ask, words: dict[str, tuple[str, str]], *, about: str = ""
) -> statetimeline.Panel:
    """Draw a bar per series that changes its colour with its value."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .mappings([_words(words)])
        .show_value(VisibilityMode.NEVER)
        .merge_values(True)
        .row_height(0.8)
        .targets([_query(ask, 0).range()])
    )


def rows(title: str, labels: dict[str, str], *columns: Column, about: str = "") -> table.Panel:
    """Show a row per set of ``labels`` (label -> its heading), a column per expression."""
    renamed = {**labels}
    order = [*labels]
    for place, column in enumerate(columns):
        value = f"Value #{chr(ord('A') + place)}" if len(columns) > 1 else "Value"
        renamed[value] = column.title
        order.append(value)
    panel = (
        table.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .no_value("нет данных")
        .targets(
            [
                _query(Ask(column.expression), place).instant().format(PromQueryFormat.TABLE)
                for place, column in enumerate(columns)
            ]
        )
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {name: place for place, name in enumerate(order)},
                    "renameByName": renamed,
                },
            )
        )
    )
    for column in columns:
        properties = [
            DynamicConfigValue(id_val="unit", value=column.unit),
            DynamicConfigValue(id_val="decimals", value=column.decimals),
        ]
        if column.steps:
            made = _thresholds(column.steps).build()
            properties += [
                DynamicConfigValue(id_val="thresholds", value=made.to_json()),
                DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
            ]
        panel.override_by_name(column.title, properties)
    return panel


def heat(title: str, unit: str, expression: str, *, about: str = "") -> heatmap.Panel:
    """Show how a histogram's values are spread over time; the expression is rates by ``le``."""
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .targets([_query(Ask(expression, "{{le}}"), 0).range().format(PromQueryFormat.HEATMAP)])
    )
