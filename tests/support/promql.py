"""What an expression of PromQL refers to, by a parser that is not Prometheus' own."""

from __future__ import annotations

from typing import Any, NamedTuple

import promql_parser


class Selector(NamedTuple):
    """One series selector: the metric's name and its matchers, as (label, operator, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


def selectors(expression: str) -> list[Selector]:
    """Every series selector of an expression; raises ValueError where it cannot be parsed."""
    found: list[Selector] = []
    for node in _nodes(expression):
        one = getattr(node, "vector_selector", node)
        if isinstance(one, promql_parser.VectorSelector):
            matchers = tuple(
                (matcher.name, str(matcher.op).rpartition(".")[2], matcher.value)
                for matcher in one.matchers.matchers
            )
            found.append(Selector(one.name or dict_of(matchers).get("__name__", ""), matchers))
    return list(dict.fromkeys(found))


def dict_of(matchers: tuple[tuple[str, str, str], ...]) -> dict[str, str]:
    """The matchers as label -> value."""
    return {label: value for label, _, value in matchers}


def grouping_labels(expression: str) -> set[str]:
    """Every label after by, without, on, ignoring, group_left and group_right."""
    found: set[str] = set()
    for node in _nodes(expression):
        modifier = getattr(node, "modifier", None)
        for part in (modifier, getattr(modifier, "matching", None)):
            found.update(getattr(part, "labels", None) or ())
            found.update(getattr(part, "group_labels", None) or ())
    return found


def shortest_range(expression: str) -> float | None:
    """Seconds of the shortest window that is looked at; None without any."""
    found = [
        node.range.total_seconds()
        for node in _nodes(expression)
        if isinstance(node, promql_parser.MatrixSelector | promql_parser.SubqueryExpr)
    ]
    return min(found, default=None)


def _nodes(expression: str) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), found.append)
    return found
