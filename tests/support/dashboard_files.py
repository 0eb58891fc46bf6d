"""The dashboards' committed JSON: panels, expressions, variables."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "metrics" / "dashboards"

# What Grafana puts in place of its variables; every choice of a list is taken here.
_RANGES = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "1h"}
_LABEL_VALUES = re.compile(r"label_values\((.*), (\w+)\)")


class Expression(NamedTuple):
    """One expression of a panel, ready to be asked."""

    page: str
    panel: str
    text: str
    legend: str
    is_instant: bool
    labels: tuple[str, ...]
    """Those that a table shows."""

    def __str__(self) -> str:
        return f"{self.page}: {self.panel}"


class Choice(NamedTuple):
    """One variable's query: the values of a label."""

    page: str
    name: str
    selector: str
    label: str

    def __str__(self) -> str:
        return f"{self.page}: {self.name}"


@cache
def dashboards() -> dict[str, dict[str, Any]]:
    """File name -> dashboard."""
    return {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Every panel, rows and what is in them included."""
    found = []
    for panel in page["panels"]:
        found += [panel, *panel.get("panels", [])]
    return found


def filled(expression: str) -> str:
    """The expression with every variable chosen as a page does that was just opened."""
    for name, value in _RANGES.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$\w+", ".+", expression)


def expressions() -> list[Expression]:
    """Every expression of every panel and annotation."""
    found = []
    for page in dashboards().values():
        for panel in panels(page):
            shown = _shown(panel)
            found += [
                Expression(
                    page["uid"],
                    panel["title"],
                    filled(target["expr"]),
                    target["legendFormat"],
                    target["instant"],
                    shown,
                )
                for target in panel.get("targets", [])
            ]
        found += [
            Expression(
                page["uid"],
                one["name"],
                filled(one["target"]["expr"]),
                one["textFormat"],
                False,
                (),
            )
            for one in page["annotations"].get("list", [])
        ]
    return found


def _shown(panel: dict[str, Any]) -> tuple[str, ...]:
    for transformation in panel.get("transformations", []):
        if transformation["id"] == "organize":
            renamed = transformation["options"]["renameByName"]
            return tuple(name for name in renamed if not name.startswith("Value"))
    return ()


def choices() -> list[Choice]:
    """Every variable that is asked of Prometheus."""
    found = []
    for page in dashboards().values():
        for variable in page["templating"]["list"]:
            if variable["type"] == "query":
                match = _LABEL_VALUES.fullmatch(variable["query"]["query"])
                assert match is not None, variable["query"]
                found.append(Choice(page["uid"], variable["name"], filled(match[1]), match[2]))
    return found
