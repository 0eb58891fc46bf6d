"""All dashboards, and the text of their files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from metrics.dashboards import gpus, models, objectives, overview, service

if TYPE_CHECKING:
    from metrics.dashboards.layout import Page

PAGES = (overview, models, objectives, gpus, service)


def pages() -> list[Page]:
    """Build every dashboard."""
    return [module.page() for module in PAGES]


def written() -> dict[str, str]:
    """Return file name -> text; the same for the same code."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    return {f"{page.uid}.json": encoder.encode(page.build()) + "\n" for page in pages()}
