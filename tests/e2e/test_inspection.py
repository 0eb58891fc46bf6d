"""Harmful files meet the real inspecting child and the real loader; harmless ones pass both."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.artifacts.child import inspection
from server.environments.build import Environments
from server.environments.plan import FURTHER, plan
from server.environments.trees import build_tree
from server.sandbox.launch import base_python
from server.settings import Settings
from tests.corpus.every import every_technique
from tests.corpus.technique import DEADLINE, INSPECTION
from tests.support.environments import FOLDER
from tests.support.proofs import SUPPORT, environment
from tests.support.wheels import wheel_links

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.e2e

TECHNIQUES = dict(enumerate(every_technique()))
PAGE = Path(__file__).parents[2] / "docs" / "inspection.md"
CHILD = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "from server.artifacts.child import main; sys.exit(main(sys.argv[2:]))"
)


def file_name(number: int) -> str:
    return f"{number:03}"


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which whatever runs leaves a mark."""
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, marks: Path) -> Callable[[list[int]], Path]:
    def files(numbers: list[int]) -> Path:
        folder = tmp_path_factory.mktemp("corpus")
        for number in numbers:
            content = TECHNIQUES[number].make(str(marks / file_name(number)))
            (folder / file_name(number)).write_bytes(content)
        return folder

    return files


@pytest.fixture(scope="module")
def inspect(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, Any]]:
    """Inspect a file in the real child; outside of the sandbox, which might hide what runs."""
    tree = build_tree(tmp_path_factory.mktemp("trees"), "inspect")
    outputs = tmp_path_factory.mktemp("outputs")

    def run(path: Path) -> dict[str, Any]:
        folder = outputs / path.name
        folder.mkdir()
        command = [base_python(), "-I", "-S", "-c", CHILD, tree, path, folder]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env={})
        report: dict[str, Any] = json.loads(ended.stdout)
        assert ended.returncode == (0 if report["ok"] else 1), ended.stderr
        return report

    return run


@pytest.fixture(scope="module")
def python() -> Path:
    """An environment for every package that a model of scikit-learn's family may need."""

    async def build() -> Path:
        links = tuple(part for part in wheel_links().split(",") if part)
        environments = Environments(Settings(wheel_links=links), FOLDER)
        lock = await environments.lock(plan("sklearn", "joblib", None, "cpu", None, FURTHER))
        built = await environments.build(lock, lambda _code, _params: None)
        await environments.close()
        return built.python

    return asyncio.run(build())


def load(python: Path, command: str, path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, SUPPORT / "load_corpus.py", command, path],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_inspecting_child_refuses_the_corpus_and_runs_none_of_it(
    write: Callable[[list[int]], Path], inspect: Callable[[Path], dict[str, Any]], marks: Path
) -> None:
    folder = write(list(TECHNIQUES))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(inspect, sorted(folder.iterdir())))

    ended = {number: report.get("code", "ok") for number, report in enumerate(reports)}
    wanted = {
        number: each.code if each.stopped_by == INSPECTION else "ok"
        for number, each in TECHNIQUES.items()
    }
    assert ended == wanted
    assert list(marks.iterdir()) == []


def test_the_unpickler_alone_refuses_every_pickle_and_runs_none_of_it(
    write: Callable[[list[int]], Path], python: Path, tmp_path: Path, marks: Path
) -> None:
    wanted = {number: each.unpickler for number, each in TECHNIQUES.items() if each.unpickler}
    done = load(python, "product", write(list(wanted)), tmp_path)

    assert done.returncode == 0, done.stderr[-2000:]
    ended = {int(name): code for name, code in map(str.split, done.stdout.splitlines())}
    assert ended == wanted
    assert list(marks.iterdir()) == []


def test_a_pickle_that_takes_for_ever_is_ended_from_outside(
    write: Callable[[list[int]], Path], python: Path, tmp_path: Path, marks: Path
) -> None:
    numbers = [number for number, each in TECHNIQUES.items() if each.stopped_by == DEADLINE]
    [path] = write(numbers).iterdir()

    assert load(python, "endless", path, tmp_path).returncode == -signal.SIGKILL
    assert list(marks.iterdir()) == []


def test_the_corpus_really_does_its_harm_where_it_is_loaded_as_usual(
    write: Callable[[list[int]], Path], python: Path, tmp_path: Path, marks: Path
) -> None:
    numbers = [number for number, each in TECHNIQUES.items() if each.runs]
    try:
        load(python, "usual", write(numbers), tmp_path)

        ran = {path.name for path in marks.iterdir()}
        assert {file_name(number) for number in numbers} == ran
    finally:
        for path in marks.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# ── harmless files


@pytest.fixture(scope="module")
def estimators(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimators")
    every(python, "make", folder)
    return folder


def every(python: Path, command: str, folder: Path) -> str:
    done = subprocess.run(
        [python, SUPPORT / "every_estimator.py", command, folder],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_estimator_can_be_fitted_for_this(estimators: Path) -> None:
    notes = json.loads((estimators / "notes.json").read_text())

    assert {name: note for name, note in notes.items() if "fitted" not in note} == {}
    assert len(notes) > 200


def test_every_estimator_passes_the_inspection(estimators: Path, tmp_path: Path) -> None:
    forms = {".pickle", ".joblib", ".packed"}
    files = [path for path in sorted(estimators.iterdir()) if path.suffix in forms]
    reports = {path.name: inspection(path, tmp_path) for path in files}

    assert {name: report for name, report in reports.items() if not report["ok"]} == {}


def test_every_estimator_answers_as_it_does_outside_or_is_in_the_table(
    estimators: Path, python: Path
) -> None:
    results = json.loads(every(python, "serve", estimators).splitlines()[-1])
    ended = {name: set(forms.values()) for name, forms in results.items()}
    failed = {name: found for name, found in ended.items() if found != {"same"}}
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    # A code may be followed by the name of the estimator.
    assert {name: {code.split()[0] for code in found} for name, found in failed.items()} == {
        name: {code} for name, code in rows
    }
    assert f"{len(results) - len(failed)} of {len(results)}" in PAGE.read_text(encoding="utf-8")
