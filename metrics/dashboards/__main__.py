"""``python -m metrics.dashboards``: write every dashboard's JSON file."""

from __future__ import annotations

from pathlib import Path

from metrics.dashboards.pages import written

FOLDER = Path(__file__).parent


def main() -> None:
    """Write the files anew."""
    for name, text in written().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
