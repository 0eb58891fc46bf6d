"""What all dashboards share: a page with rows, its variables, its panels' places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    Panel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

TAG = "persephone"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
ALL = "$__all"
# Not `.*`: a series without the label belongs to nobody who could be chosen.
ANY = ".+"


class PanelBuilder(Protocol):
    """What every kind of panel can be told."""

    def id(self, id_val: int) -> Self:
        """Take a number."""

    def span(self, w: int) -> Self:
        """Take a width, in columns of 24."""

    def height(self, h: int) -> Self:
        """Take a height."""

    def build(self) -> Panel:
        """Return the panel."""


Placed = tuple[int, PanelBuilder]
"""A panel and its width."""


class Page:
    """One dashboard; panels stand in the order in which they are added."""

    def __init__(self, uid: str, title: str, about: str, *, span: str = "now-1h") -> None:
        """``span`` is the time that it opens with."""
        self.uid = uid
        self._next_id = 1
        self._dashboard = (
            builders.Dashboard(f"Persephone / {title}")
            .uid(uid)
            .description(about)
            .tags([TAG])
            .timezone("browser")
            .refresh("30s")
            .time(span, "now")
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .editable()
            .link(
                builders.DashboardLink("Persephone")
                .type(DashboardLinkType.DASHBOARDS)
                .tags([TAG])
                .as_dropdown(True)
                .keep_time(True)
                .include_vars(True)
            )
            .with_variable(
                builders.DatasourceVariable("datasource").label("Источник").type("prometheus")
            )
        )

    def choose(self, name: str, label: str, values: str) -> Self:
        """Add a variable: one value, several, or all, of the query ``values``."""
        chosen = (
            builders.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query({"qryType": 1, "query": values, "refId": f"variable-{name}"})
            .definition(values)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(ANY)
            .current(VariableOption(selected=True, text="Все", value=ALL))
        )
        self._dashboard.with_variable(chosen)
        return self

    def mark(self, name: str, expression: str, text: str) -> Self:
        """Draw a line through all graphs wherever the expression has a value."""
        annotation = (
            builders.AnnotationQuery()
            .name(name)
            .datasource(SOURCE)
            .enable(True)
            .icon_color("blue")
            .target(prometheus.Dataquery().ref_id("Anno").expr(expression).range().interval("30s"))
            .title_format(name)
            .text_format(text)
        )
        self._dashboard.annotation(annotation)
        return self

    def row(self, title: str, panels: Sequence[Placed], *, height: int) -> Self:
        """Add a row with its panels, each with its width."""
        assert sum(width for width, _ in panels) % WIDTH == 0, title  # noqa: S101
        self._dashboard.with_row(builders.Row(title).id(self._number()))
        for width, panel in panels:
            placed = panel.id(self._number()).span(width).height(height)
            # It asks for its own base class, which every kind of panel has.
            self._dashboard.with_panel(placed)  # type: ignore[arg-type]
        return self

    def build(self) -> Dashboard:
        """Return the dashboard."""
        return self._dashboard.build()

    def _number(self) -> int:
        number = self._next_id
        self._next_id += 1
        return number
