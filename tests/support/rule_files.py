"""The shipped recording rules and alerts, as they stand in metrics/rules."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "metrics" / "rules"


@cache
def groups() -> tuple[dict[str, Any], ...]:
    """Every group of rules of all files."""
    return tuple(
        group
        for path in sorted(FOLDER.glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    )


def rules() -> list[dict[str, Any]]:
    """Every rule."""
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> set[str]:
    """Names of the series that the rules record."""
    return {rule["record"] for rule in rules() if "record" in rule}
