"""The corpus of harmful files: each is refused for a cause that has a name, and none of it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.artifacts.child import inspection
from tests.corpus.every import every_technique, table
from tests.corpus.technique import INSPECTION, Technique

TECHNIQUES = every_technique()
PAGE = Path(__file__).parents[3] / "docs" / "inspection.md"


def title(technique: Technique) -> str:
    return f"{technique.group}: {technique.name}"


def test_no_technique_is_counted_twice() -> None:
    assert len({title(technique) for technique in TECHNIQUES}) == len(TECHNIQUES) >= 150
    files = {technique.make("mark") for technique in TECHNIQUES}
    assert len(files) == len(TECHNIQUES)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=title)
def test_a_harmful_file_is_inspected_to_its_end_and_nothing_in_it_runs(
    technique: Technique, tmp_path: Path
) -> None:
    folder, marks = tmp_path / "out", tmp_path / "marks"
    folder.mkdir()
    marks.mkdir()
    artifact = tmp_path / "artifact"
    artifact.write_bytes(technique.make(str(marks / "ran")))

    report = inspection(artifact, folder)

    stopped = technique.stopped_by == INSPECTION
    assert report.get("code", "ok") == (technique.code if stopped else "ok"), report
    assert list(marks.iterdir()) == []


def test_the_page_lists_the_corpus_as_it_is() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), f"docs/inspection.md needs:\n{table()}"
