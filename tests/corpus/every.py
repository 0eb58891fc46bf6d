"""The corpus: every technique, and the table of it that the documentation shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.corpus import encodings, gadgets, joblibs, models, nested, tar_files, zip_files

if TYPE_CHECKING:
    from tests.corpus.technique import Technique

_MODULES = (gadgets, encodings, joblibs, zip_files, tar_files, nested, models)
_STOPPED_BY = {
    "inspection": "the inspection",
    "loader": "the unpickler",
    "deadline": "the deadline of its step",
}


def every_technique() -> list[Technique]:
    return [technique for module in _MODULES for technique in module.techniques()]


def table() -> str:
    """Return the table of docs/inspection.md."""
    listed = every_technique()
    rows = [
        f"| {number} | {each.group} | {each.name} | `{each.code}` | {_STOPPED_BY[each.stopped_by]} |"
        for number, each in enumerate(listed, 1)
    ]
    head = [
        "| | kind of file | technique | ends as | stopped by |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows])
